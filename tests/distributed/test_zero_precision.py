"""ZeRO sums the gradients of bf16 weights in float32, over micro-batches and ranks, or refuses."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback

from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.distributed import SPDeepSpeedStrategy
from lrsa_lightning.distributed.zero_config import check_compiler, check_precision, sum_gradients_in_float32
from lrsa_lightning.errors import InputError
from tests.distributed.fits import Fit, fit, strategy

pytestmark = pytest.mark.usefixtures("in_tmp_path")
HERE = "tests.distributed.test_zero_precision"


class Float32Sum(Callback):
    """Sums the bf16 gradients of each micro-batch itself, in one process without ZeRO."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in pl_module.named_parameters()}

    def on_after_backward(self, trainer, pl_module) -> None:
        for name, parameter in pl_module.named_parameters():
            self.sums[name] += parameter.grad
            parameter.grad = None

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        torch.save(self.sums, Path(trainer.default_root_dir) / "gradients.pt")


class EngineTypes(Callback):
    """Checks the dtypes that DeepSpeed uses."""

    def on_train_start(self, trainer, pl_module) -> None:
        engine = trainer.strategy.deepspeed_engine
        assert engine.communication_data_type == torch.float32
        assert engine.get_data_types() == (torch.bfloat16, torch.float32)
        assert "Zero" in type(engine.optimizer).__name__


@pytest.fixture(scope="module")
def expected() -> list[Fit]:
    """The fit of one process without ZeRO, made once."""
    return []


@pytest.fixture
def run(arguments, tmp_path):
    def make(ranks: int, chosen: dict[str, str], *callbacks: str) -> Fit:
        entries = json.dumps([{"class_path": name} for name in callbacks])
        base = {**arguments, "data.micro_batch_size": "1", "data.global_batch_size": "16", "trainer.max_steps": "1"}
        base |= {"trainer.precision": "bf16-true", "trainer.callbacks": entries}
        folder = tmp_path / f"on-{ranks}"
        folder.mkdir()
        return fit(ranks, base | chosen, folder)

    return make


def relative_error(got: Fit, expected: Fit) -> float:
    assert got.gradients.keys() == expected.gradients.keys()
    off = sum((got.gradients[name].double() - z).square().sum() for name, z in expected.gradients.items())
    return float((off / sum(z.square().sum() for z in expected.gradients.values())).sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_gradients_are_a_float32_sum(run, expected, name):
    """16 micro-batches, eight on each of two ranks. A sum in bf16 would be off by 3e-3."""
    if not expected:
        expected.append(run(1, {}, f"{HERE}.Float32Sum"))
    found = run(2, strategy(name), "tests.distributed.fits.KeepGradients", f"{HERE}.EngineTypes")
    assert relative_error(found, expected[0]) < 1e-5


def prepared(arguments, precision: str = "bf16-true", micro_batch: int = 1, **strategy_arguments) -> LRSACLI:
    """A run after its checks, before any data or weight is read."""
    chosen = {"class_path": "lrsa_lightning.distributed.SPDeepSpeedStrategy", "init_args": strategy_arguments}
    options = {**arguments, "trainer.strategy": json.dumps(chosen), "trainer.precision": precision}
    options |= {"data.micro_batch_size": str(micro_batch), "data.global_batch_size": "4", "trainer.devices": "2"}
    cli = LRSACLI([f"--{key}={value}" for key, value in options.items()], run=False)
    trainer = cli.trainer
    trainer.training, cli.datamodule.trainer, trainer.datamodule = True, trainer, cli.datamodule
    cli.model._trainer = trainer
    cli.model.prepare_data()
    return cli


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", "bf16"), ("bf16-mixed", "bf16"), ("16-mixed", "fp16")])
def test_stage_1_refuses_sums_in_16_bits_and_names_the_alternatives(arguments, precision, dtype):
    with pytest.raises(InputError, match=f"gradients of 2 micro-batches in {dtype}: set stage: 2, .*micro_batch_size"):
        prepared(arguments, precision, stage=1)


@pytest.mark.parametrize(
    ("precision", "micro_batch", "config"),
    [
        ("32-true", 1, {}),
        ("bf16-true", 2, {}),
        ("bf16-true", 1, {"data_types": {"grad_accum_dtype": "bf16"}}),
    ],
)
def test_stage_1_runs_where_nothing_is_lost_or_the_user_accepts_it(arguments, precision, micro_batch, config):
    prepared(arguments, precision, micro_batch, config={"zero_optimization": {"stage": 1}, **config})


def test_stage_1_with_float32_sums_is_refused(arguments):
    config = {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}
    with pytest.raises(InputError, match="neither skip a step nor read its checkpoints: set stage: 2"):
        prepared(arguments, config=config)


def test_the_users_types_stay():
    own = {"zero_optimization": {"stage": 2}, "communication_data_type": "bf16"}
    own["data_types"] = {"grad_accum_dtype": "bf16"}
    config = dict(own)
    sum_gradients_in_float32(config)
    assert config == own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stage": 0}, "stage is 0, but must be one of 1, 2, 3"),
        ({"stage": 4}, "stage is 4, but must be one of 1, 2, 3"),
        ({"zero_optimization": False}, "has ZeRO stage 0"),
        ({"config": {}}, "has ZeRO stage 0"),
        ({"config": {"zero_optimization": True}}, "must have a mapping there"),
        ({"config": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"config": "broken.json"}, "broken.json cannot be read"),
        ({"config": {"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}}, "'optimizer': leave it out"),
        ({"config": {"zero_optimization": {"stage": 2}, "gradient_clipping": 2}}, "trainer.gradient_clip_val says it"),
        ({"config": {"zero_optimization": {"stage": 2}, "train_batch_size": 2}}, "data.global_batch_size says it"),
        (
            {"config": {"zero_optimization": {"stage": 2}, "sequence_parallel_size": 2}},
            "sequence_parallel.size says it",
        ),
        ({"offload_parameters": True}, "offload_parameters needs ZeRO stage 3, not 2"),
    ],
)
def test_deepspeeds_configuration_may_not_contain_settings_of_the_run(tmp_path, arguments, said):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=said):
        SPDeepSpeedStrategy(**arguments)


def test_an_unknown_type_is_named(arguments):
    config = {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp42"}}
    with pytest.raises(InputError, match="grad_accum_dtype: 'fp42', but must say fp32 or bf16"):
        prepared(arguments, config=config)


@pytest.mark.parametrize(
    ("config", "precision", "said"),
    [
        ({"bf16": {"enabled": True}}, "32-true", "trainer's precision is 32-true"),
        ({"fp16": {"enabled": True}}, "bf16-mixed", "trainer's precision is bf16-mixed"),
        ({"bf16": {"enabled": False}}, "bf16-true", "trainer's precision is bf16-true"),
        ({}, "16-mixed", "no float16 on this device: set trainer.precision bf16-mixed"),
    ],
)
def test_precisions_that_contradict_each_other_are_refused(config, precision, said):
    with pytest.raises(InputError, match=said):
        check_precision(config, precision, has_fp16=False)


def test_offload_without_a_compiler_says_what_to_install(monkeypatch):
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    check_compiler({"zero_optimization": {"stage": 2}})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"there is no .* and no ninja: install a C\+\+ compiler and ninja"):
        check_compiler(config)


def test_a_configuration_serves_two_strategies():
    config = {"zero_optimization": {"stage": 2}}
    SPDeepSpeedStrategy(config=config).config["gradient_accumulation_steps"] = 4
    SPDeepSpeedStrategy(config=config)


def test_clipping_by_value_is_refused_before_anything_is_read(arguments):
    clipping = {"trainer.gradient_clip_val": "1", "trainer.gradient_clip_algorithm": "value"}
    with pytest.raises(InputError, match="DeepSpeed clips by the norm alone"):
        prepared(arguments | clipping)
