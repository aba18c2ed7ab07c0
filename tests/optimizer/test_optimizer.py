"""Optimizers by name: which class a name means, its arguments, its states, and what a run with it does."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import Parameter

from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.distributed.optimizers import check_optimizer_strategy
from lrsa_lightning.errors import InputError
from lrsa_lightning.optimizer.names import OptimizerName
from lrsa_lightning.optimizer.settings import OptimizerSettings
from tests.conftest import TINY_MODEL
from tests.refusals import cases, refused
from tests.runs import checkpoints, command, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
OF_TORCH = ("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "sgd")
OF_BITSANDBYTES = ("adamw8bit", "paged_adamw8bit", "bitsandbytes.adamw", "lion8bit", "ademamix8bit", "rmsprop8bit")
OF_TORCHAO = ("torchao.adamw8bit", "adamw4bit", "adamwfp8")
EVERY = (*OF_TORCH, *OF_BITSANDBYTES, *OF_TORCHAO)


def settings_of(name: str, **args) -> OptimizerSettings:
    """The settings; skips the test where the library is not installed."""
    settings = OptimizerSettings(name, args)
    pytest.importorskip(settings.found.library, exc_type=ImportError)
    return settings


@pytest.mark.parametrize(
    ("given", "library", "name"),
    [
        ("AdamW", "torch", "adamw"),
        ("torch.optim.SGD", "torch", "sgd"),
        ("adamw_8bit", "bitsandbytes", "adamw8bit"),
        ("paged-AdamW-8bit", "bitsandbytes", "pagedadamw8bit"),
        ("bnb.adamw", "bitsandbytes", "adamw"),
        ("adamw4bit", "torchao", "adamw4bit"),
        ("torchao.AdamW8bit", "torchao", "adamw8bit"),
    ],
)
def test_a_name_means_one_class(given, library, name):
    assert OptimizerName.of(given) == OptimizerName(library, name)


@pytest.mark.parametrize("name", EVERY)
def test_each_name_is_a_class_of_its_library_that_makes_a_step(name):
    settings = settings_of(name)
    settings.check()
    weight = Parameter(torch.ones(64, 64))
    optimizer = settings.make([weight], 0.1, (0.9, 0.95), 0.0, fused=False)
    weight.grad = torch.ones(64, 64)
    optimizer.step()
    assert (weight < 1).all()


@cases(
    [
        ("AdamQ", "model.optimizer.name is 'AdamQ', but must be an optimizer of torch", "did you mean"),
        ("muon", "model.optimizer.name is 'muon'"),
    ]
)
def test_an_unknown_name_is_refused(wrong, said, arguments, capsys):
    refused(capsys, lambda: main(command(arguments | {"model.optimizer.name": wrong})), *said)


@pytest.mark.parametrize("name", ["adamw8bit", "torchao.adamw4bit"])
def test_a_missing_library_is_one_line_before_data_are_read(name, arguments, monkeypatch, capsys):
    library = OptimizerName.of(name).library
    monkeypatch.setitem(sys.modules, f"{library}.optim", None)
    wrong = arguments | {"model.optimizer.name": name, "data.train_files": "nowhere.jsonl"}
    refused(capsys, lambda: main(command(wrong)), f"needs {library}", "pip install 'lrsa-lightning[optimizers]'")


@cases(
    [
        ({"name": "sgd", "args": {"lr": 1}}, "model.optimizer.args has lr: leave it out, model.lr says it"),
        ({"name": "sgd", "args": {"momentun": 0.9}}, "momentun is no argument of SGD: did you mean momentum?"),
        ({"name": "adamw", "args": {"eps": -1}}, "AdamW refuses its arguments {'eps': -1}: Invalid epsilon"),
        ({"name": "adamw", "args": {"betas": [0, 0]}}, "model.optimizer.args has betas", "model.betas says it"),
    ]
)
def test_arguments_are_checked(wrong, said, arguments, capsys):
    refused(capsys, lambda: main(command(arguments | {"model.optimizer": json.dumps(wrong)})), *said)


def test_betas_of_an_optimizer_that_has_none_are_refused(arguments, capsys):
    wrong = arguments | {"model.optimizer.name": "sgd", "model.betas": "[0.5, 0.6]"}
    assert "SGD has no two betas" in refusal(capsys, command(wrong))


def test_vectors_do_not_decay_and_arguments_arrive():
    """Steps of SGD with momentum, by hand."""
    matrix, vector = Parameter(torch.full((2, 2), 2.0)), Parameter(torch.full((2,), 2.0))
    optimizer = settings_of("sgd", momentum=0.5).make([matrix, vector], 0.1, (0.9, 0.95), 0.5, fused=False)
    for _ in range(2):
        matrix.grad, vector.grad = torch.ones(2, 2), torch.ones(2)
        optimizer.step()
    first = 2 - 0.1 * (1 + 0.5 * 2)
    velocity = 0.5 * (1 + 0.5 * 2) + (1 + 0.5 * first)
    torch.testing.assert_close(matrix.data, torch.full((2, 2), first - 0.1 * velocity))
    torch.testing.assert_close(vector.data, torch.full((2,), 2 - 0.1 - 0.1 * 1.5))


@pytest.mark.parametrize("fused", [True, False])
def test_the_fused_kernel_is_taken_where_there_is_one(fused):
    weight = Parameter(torch.ones(2, 2))
    of = {name: OptimizerSettings(name).make([weight], 0.1, (0.9, 0.95), 0.0, fused) for name in ("adamw", "adamax")}
    assert of["adamw"].defaults["fused"] == fused
    assert "fused" not in of["adamax"].defaults


def _bytes(value) -> int:
    """Of the tensors in an optimizer's state, without the tables of quantisation."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0] if name != "qmap")
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) and value.numel() > 1 else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 128), (8, 8)])
@pytest.mark.parametrize(("name", "args"), [*((name, {}) for name in EVERY), ("sgd", {"momentum": 0.9})])
def test_bytes_of_states_are_those_that_a_step_makes(name, args, shape, dtype):
    settings = settings_of(name, **args)
    weight = Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = settings.make([weight], 0.1, (0.9, 0.95), 0.0, fused=False)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    tables = ("qmap1", "qmap2")
    made = sum(_bytes(value) for key, value in optimizer.state[weight].items() if key not in tables)
    predicted = settings.found.state_bytes(args, weight.numel(), weight.element_size())
    few = 4 * sum(shape) if name == "adafactor" else 0
    assert made - few <= predicted <= made + 8


@pytest.mark.parametrize("name", ["nadam", "paged_adamw8bit", "ademamix8bit", "torchao.adamw8bit"])
def test_a_run_resumes_bit_for_bit_with_masters_and_clipping(name, arguments):
    settings_of(name)
    larger = TINY_MODEL | {"hidden_size": 64, "intermediate_size": 128}
    given = json.loads(arguments["model.from_config"]) | larger
    settings = {"model.optimizer.name": name, "model.from_config": json.dumps(given), "trainer.max_steps": "4"}
    settings |= {"trainer.precision": "bf16-master", "trainer.gradient_clip_val": "1.0"}
    settings |= {"trainer.callbacks": checkpoints(2)}
    main(command(arguments | settings))
    before = losses()
    main(command(arguments | settings | {"ckpt_path": "runs/x/checkpoints/step=2.ckpt"}))
    assert losses() == before
    states = torch.load("runs/x/checkpoints/step=2.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {type(value) for state in states.values() for value in state.values()} <= {torch.Tensor, dict, int, float}


def test_checkpoints_of_torchaos_states_load_without_torchao():
    """They hold plain tensors, and the next step is that of the optimizer that saved them."""
    settings = settings_of("torchao.adamw8bit")
    first, second = (Parameter(torch.ones(64, 64)) for _ in range(2))
    saving, loading = (settings.make([weight], 0.1, (0.9, 0.95), 0.0, fused=False) for weight in (first, second))
    first.grad = torch.linspace(-1, 1, 64 * 64).view(64, 64)
    saving.step()
    second.data.copy_(first.data)
    torch.save(saving.state_dict(), "state.pt")
    state = torch.load("state.pt", weights_only=True)
    kinds = {type(part) for value in state["state"][0].values() if isinstance(value, dict) for part in value.values()}
    assert kinds == {dict, list, str}
    loading.load_state_dict(state)
    for weight, optimizer in ((first, saving), (second, loading)):
        weight.grad = torch.ones(64, 64)
        optimizer.step()
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("strategy", "name", "said"),
    [
        ("sp_fsdp2", "adamw8bit", "take no weights that FSDP2 divides"),
        ("sp_fsdp2", "adamw4bit", "unequal parts"),
        ("sp_fsdp2", "sgd", "without states cannot resume"),
        ("sp_fsdp2", "adafactor", "rows and columns"),
        ("sp_deepspeed", "adafactor", "ZeRO makes weights flat"),
        ("sp_deepspeed", "lamb8bit", "the norm of a complete weight"),
        ("sp_deepspeed", "adagrad", "its first step fails"),
    ],
)
def test_what_a_strategy_cannot_run_is_refused_with_the_reason(strategy, name, said, arguments):
    given = LRSACLI(command(arguments | {"trainer.strategy": strategy})[1:], run=False).trainer.strategy
    with pytest.raises(InputError, match=said):
        check_optimizer_strategy(OptimizerName.of(name), {}, given)
    check_optimizer_strategy(OptimizerName.of("adamw"), {}, given)
    check_optimizer_strategy(OptimizerName.of("nadam"), {}, given)


def test_offloaded_states_are_deepspeeds_own(arguments):
    strategy = {
        "class_path": "lrsa_lightning.distributed.SPDeepSpeedStrategy",
        "init_args": {"stage": 2, "offload_optimizer": True},
    }
    given = LRSACLI(command(arguments | {"trainer.strategy": json.dumps(strategy)})[1:], run=False).trainer.strategy
    check_optimizer_strategy(OptimizerName.of("adamw"), {}, given)
    with pytest.raises(InputError, match="DeepSpeed's own AdamW"):
        check_optimizer_strategy(OptimizerName.of("adam"), {}, given)


def test_a_refusal_by_the_strategy_ends_a_run_before_the_model_is_loaded(arguments, capsys):
    wrong = arguments | {"model.optimizer.name": "sgd", "trainer.strategy": "sp_fsdp2"}
    assert "cannot resume from FSDP2" in refusal(capsys, command(wrong))


def test_another_optimizer_is_another_run_and_an_older_configuration_is_the_default(two_steps, capsys):
    settings = two_steps | {"ckpt_path": "last", "trainer.max_steps": "3"}
    assert "model.optimizer.name: adamw -> sgd" in refusal(capsys, command(settings | {"model.optimizer.name": "sgd"}))
    path = Path("runs/x/config.yaml")
    saved = yaml.safe_load(path.read_text())
    del saved["model"]["optimizer"], saved["model"]["scheduler"]
    path.write_text(yaml.safe_dump(saved))
    main(command(settings))
    assert [*losses()] == [1, 2, 3]
