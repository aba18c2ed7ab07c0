"""The plan of runs with adapters, quantised weights and other optimizers: by hand, and against real bytes."""

import json
from dataclasses import replace

import pytest
import torch

from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.adapters import LoraSettings
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan import predict
from lrsa_lightning.plan.devices import H100
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.layer_shape import Adapters
from lrsa_lightning.plan.memory import activation_bytes, backward_work, forward_work
from lrsa_lightning.plan.model_size import ModelSize
from lrsa_lightning.plan.states import States, precision_of
from lrsa_lightning.pretrained.decoder import load_config
from lrsa_lightning.pretrained.quantisation import Quantisation
from lrsa_lightning.pretrained.starting_model import StartingModel
from tests.conftest import TINY_MODEL, make_model
from tests.plan.runs import run_of

R = 16


def size_of(folder, **settings) -> tuple[ModelSize, StartingModel]:
    """Of a tiny model in a folder, with adapters of rank 4 where settings are given."""
    make_model(tie_word_embeddings=True).save_pretrained(folder)
    lora = LoraSettings(r=4, **settings) if settings else None
    start = StartingModel(str(folder), lora=lora)
    return ModelSize.of(start.load_config(), start), start


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.1},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["up_proj"], "layers_to_transform": [1]},
        {"modules_to_save": ["embed_tokens", "norm"]},
    ],
    ids=str,
)
def test_parameters_are_those_of_the_built_model(settings, tmp_path):
    size, start = size_of(tmp_path, **{"dropout": 0.0} | settings)
    model = start.load(start.load_config())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(size.tensors) == sorted(p.numel() for p in trained)
    assert size.total == sum(p.numel() for p in model.parameters())
    assert size.frozen == size.total - sum(p.numel() for p in trained)
    layer = max(sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in model.model.layers)
    assert size.trained_layer == layer
    if "modules_to_save" not in settings:
        assert size.adapters.parameters == layer
    assert size.trains_embedding == ("modules_to_save" in settings)
    assert size.adapters.has_dropout == ("dropout" in settings)
    assert size.adapters.in_mlp == (settings.get("target_modules") != ["q_proj", "v_proj"])


def test_dora_is_refused_with_the_reason(tmp_path):
    with pytest.raises(InputError, match=r"use_dora: .* was not measured. Plan with use_dora: false"):
        size_of(tmp_path, use_dora=True)


def _with_adapters(**changed):
    """The 1.5B shape with adapters of rank 16 on all linear layers, as numbers."""
    run = run_of(precision="bf16-master", is_fused=True)
    config = run.config
    hidden, wide, kv = config.hidden_size, config.intermediate_size, 2 * 128
    pairs = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), (hidden, wide), (hidden, wide)]
    pairs.append((wide, hidden))
    parameters = sum(R * (a + b) for a, b in pairs)
    adapters = Adapters(parameters, 7 * R, sum(a for a, _ in pairs), sum(b for _, b in pairs))
    of_all = run.size.layers * parameters
    size = replace(
        run.size,
        total=run.size.total + of_all,
        layer=run.size.layer + parameters,
        tensors=(of_all,),
        trained_layer=parameters,
        trains_embedding=False,
        adapters=adapters,
    )
    return replace(run, size=size, **changed)


def test_frozen_weights_have_two_bytes_and_adapters_eighteen():
    base, run = run_of().size.total, _with_adapters()
    states = States.of(run.size, run.bytes_of, run.division)
    trained = run.size.trained
    assert trained == 28 * R * (9 * 1536 + 2 * 256 + 3 * 8960)
    assert states.weights == 2 * base + 2 * trained
    assert (states.masters, states.gradients, states.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    assert states.pending == 0


@pytest.mark.parametrize(("stage", "weights"), [(1, 1), (2, 1), (3, 1 / 4)])
def test_zero_divides_the_states_of_adapters_and_in_stage_3_all_weights(stage, weights):
    run = _with_adapters(division=Division("zero", 4, stage), global_batch_size=4)
    states = States.of(run.size, run.bytes_of, run.division)
    assert states.weights == pytest.approx(2 * run.size.total * weights, rel=1e-6)
    assert states.optimizer == pytest.approx(8 * run.size.trained / 4, rel=1e-6)


def test_quantised_layers_have_half_a_byte_and_the_rest_stays():
    run = _with_adapters()
    rest = run.size.frozen - run.size.layer_products
    for word, a_number in (("nf4", 0.5 + 1 / 64 + 4 / 16384), ("int8", 1)):
        states = States.of(run.size, run.bytes_of, run.division, quantisation=Quantisation.of(word))
        expected = 2 * run.size.trained + 2 * rest + a_number * run.size.layer_products
        assert states.weights == pytest.approx(expected, rel=1e-9)


def test_a_frozen_layer_needs_one_product_in_the_backward():
    run = _with_adapters()
    shape, full = run.shapes()[0], run_of(precision="bf16-master", is_fused=True).shapes()[0]
    products = forward_work(full).flops
    adapters = 2 * 32768 * shape.adapters.parameters
    assert forward_work(shape).flops == products + adapters
    assert backward_work(shape).flops == products + 2 * adapters
    assert backward_work(full).flops == 2 * products


def test_adapters_keep_their_thin_products_and_dropout_its_copies():
    shape, full = _with_adapters().shapes()[0], run_of(is_fused=True).shapes()[0]
    thin = 32768 * 7 * R * 2
    assert activation_bytes(shape, "attention") - activation_bytes(full, "attention") == thin
    assert activation_bytes(shape, "full") == activation_bytes(full, "full")
    dropping = replace(shape, adapters=replace(shape.adapters, has_dropout=True))
    copies = 32768 * shape.adapters.inputs * 3
    assert activation_bytes(dropping, "attention") - activation_bytes(shape, "attention") == copies


def test_adapters_take_less_memory_and_quantised_weights_less_but_more_time():
    settings = {"recompute": "full", "global_batch_size": 1}
    full = predict(run_of(precision="bf16-master", is_fused=True, **settings), H100)
    lora = predict(_with_adapters(**settings), H100)
    quantised = predict(_with_adapters(**settings, quantisation=Quantisation.of("nf4")), H100)
    assert quantised.peak < lora.peak < full.peak
    assert lora.times.step < quantised.times.step
    saved = 16 * run_of().size.total / 2**30
    assert (full.peak - lora.peak) / 2**30 == pytest.approx(saved, rel=0.15)


def test_the_mlp_with_adapters_keeps_the_product():
    kept = predict(_with_adapters(recompute="none"), H100).moments["loss"]["activations"]
    in_attention = _with_adapters(recompute="none")
    adapters = replace(in_attention.size.adapters, in_mlp=False)
    in_attention = replace(in_attention, size=replace(in_attention.size, adapters=adapters))
    less = predict(in_attention, H100).moments["loss"]["activations"]
    assert kept - less == 28 * 32768 * 8960 * 2


@pytest.mark.parametrize(
    ("name", "a_parameter"),
    [("adamw", 8), ("lion8bit", 1 + 4 / 256), ("paged_adamw8bit", 2 + 8 / 256), ("adamw4bit", 1 + 8 / 128)],
)
def test_states_of_each_optimizer(name, a_parameter):
    run = run_of(precision="bf16-master")
    matrices = [n for n in run.size.tensors if n >= 4096]
    states = States.of(replace(run.size, tensors=tuple(matrices)), run.bytes_of, Division(), OptimizerSettings(name))
    assert states.optimizer / sum(matrices) == pytest.approx(a_parameter, rel=1e-6)
    kept = precision_of("bf16-true", Division())
    adamw = States.of(run.size, kept, Division()).optimizer
    assert adamw == 4 * run.size.total


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamw8bit", "paged_adamw8bit", "torchao.adamw8bit"])
def test_bytes_are_those_of_a_tiny_models_optimizer(name):
    settings = OptimizerSettings(name)
    pytest.importorskip(settings.found.library, exc_type=ImportError)
    keys = TINY_MODEL | {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 128}
    config = load_config(None, keys)
    model = make_model(**keys)
    optimizer = settings.make(model.parameters(), 1e-3, (0.9, 0.95), 0.1, fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    made = sum(_bytes(value) for state in optimizer.state.values() for key, value in state.items() if key[:4] != "qmap")
    states = States.of(ModelSize.of(config), precision_of("32-true", Division()), Division(), settings)
    assert states.optimizer == pytest.approx(made, rel=0.002)
    assert states.weights == sum(4 * p.numel() for p in model.parameters())


def _bytes(value) -> int:
    if hasattr(value, "__tensor_flatten__"):
        return sum(_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0] if name != "qmap")
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) and value.numel() > 1 else 0


def test_eight_bit_states_are_a_shorter_step():
    seconds = {
        name: predict(run_of(precision="bf16-master", optimizer=OptimizerSettings(name)), H100).times
        for name in ("adamw", "adamw8bit")
    }
    saved = 2 * (8 - 2 - 8 / 256) * run_of().size.total / H100.byte_rate
    assert seconds["adamw"].step - seconds["adamw8bit"].step == pytest.approx(saved, rel=0.01)


@pytest.mark.usefixtures("in_tmp_path")
def test_the_command_plans_adapters_and_optimizers(capsys, tmp_path):
    from lrsa_lightning.cli import main

    make_model().save_pretrained(tmp_path / "base")
    base = ["plan", "--device=h100", "--json", "--model.attention=LRSA", "--data.seq_len=160"]
    base += [f"--model.name_or_path={tmp_path / 'base'}", "--trainer.precision=bf16-master"]

    def states(*options: str) -> dict[str, int]:
        main([*base, *options])
        return json.loads(capsys.readouterr().out)["moments"]["optimizer step"]

    full, lora = states(), states("--model.lora.r=4")
    assert lora["optimizer states"] < full["optimizer states"] / 2
    assert states("--model.optimizer.name=lion8bit")["optimizer states"] < full["optimizer states"]
    assert states("--model.lora.r=4", "--model.quantization=nf4")["weights"] < lora["weights"]
