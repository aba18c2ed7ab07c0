"""The plan of a run whose steps differ in their attention: the most memory of any, and the mean of their times."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.cli import main
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.optimizer import OptimizerSettings
from lrsa_lightning.plan import predict, recompute_choice
from lrsa_lightning.plan.devices import H100
from lrsa_lightning.plan.division import Division
from lrsa_lightning.pretrained.starting_model import StartingModel
from tests.conftest import make_model
from tests.plan.runs import KEYS_1_5B, run_of
from tests.runs import command

RATIOS = [1.0, 0.5, 0.25]
ULYSSES = Division("zero", 2, 3, sequence_parallel=SequenceParallel(2, "ulysses"))
CONTEXT = Division("zero", 2, 3, sequence_parallel=SequenceParallel(2, "context"))
SETTINGS = [{}, {"recompute": "auto", "is_fused": True}, {"division": ULYSSES}, {"division": CONTEXT}]
IDS = ["full", "auto", "ulysses", "context"]


def predictions(settings: dict, **arguments) -> tuple:
    """Of the elastic run, and of runs with each ratio alone."""
    run = run_of(**settings, max_steps=100, global_batch_size=2, mode=LRSA(retention_ratio=RATIOS, **arguments))
    fixed = [replace(run, mode=LRSA(retention_ratio=ratio)) for ratio in RATIOS]
    return predict(run, H100), [predict(each, H100) for each in fixed]


@pytest.mark.parametrize(("settings", "most"), zip(SETTINGS, [0.5, 0.5, 0.5, 1.0], strict=True), ids=IDS)
def test_memory_is_that_of_the_ratio_that_needs_most(settings, most):
    """Full attention keeps no compact keys beside the raw ones, but under context parallelism those of other ranks."""
    elastic, fixed = predictions(settings)
    alone = fixed[RATIOS.index(most)]
    assert elastic.policies == alone.policies
    assert elastic.moments == alone.moments
    if "recompute" not in settings:
        assert elastic.peak == max(each.peak for each in fixed)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 2.0]])
@pytest.mark.parametrize("settings", [SETTINGS[0], *SETTINGS[2:]], ids=[IDS[0], *IDS[2:]])
def test_time_is_the_mean_by_the_weights(settings, weights):
    parts = [weight / sum(weights or RATIOS) for weight in weights] if weights else [1 / 3] * 3
    for schedule in ("random", "curriculum"):
        elastic, fixed = predictions(settings, retention_weights=weights, retention_schedule=schedule)
        for name in ("micro_batch", "step", "run"):
            expected = sum(part * getattr(each.times, name) for part, each in zip(parts, fixed, strict=True))
            assert getattr(elastic.times, name) == pytest.approx(expected)
    assert len({each.times.step for each in fixed}) == 3


def test_recompute_auto_is_measured_with_the_ratio_that_needs_most():
    def shape(ratio):
        mode = LRSA(lag_size=64, retention_ratio=ratio)
        parts = {"starting_model": StartingModel(from_config={}), "optimizer": OptimizerSettings(), "seq_len": 2048}
        module = SimpleNamespace(**parts, model=make_model(), attention=mode, fused_layers="auto")
        trainer = {"strategy": SimpleNamespace(root_device=torch.device("cuda")), "precision": "bf16-master"}
        trainer["datamodule"] = SimpleNamespace(micro_batch_size=2)
        return recompute_choice._shape(module, SimpleNamespace(**trainer))

    assert shape(RATIOS) == shape(0.5)
    assert shape([0.25, 1.0]) == shape(0.25)
    assert shape(0.5).attention_bytes > shape(0.25).attention_bytes > shape(1.0).attention_bytes


@pytest.mark.usefixtures("in_tmp_path")
def test_the_command_plans_it(capsys):
    given = {"model.from_config": json.dumps(KEYS_1_5B), "model.attention": "LRSA", "data.train_files": "nowhere.jsonl"}
    steps = []
    for ratio in ("[1.0, 0.5, 0.25]", *map(str, RATIOS)):
        main([*command(given | {"model.attention.retention_ratio": ratio, "device": "h100"}, "plan"), "--json"])
        steps.append(json.loads(capsys.readouterr().out)["seconds"]["step"])
    assert min(steps[1:]) < steps[0] < max(steps[1:])
    for ratio, says in (("[1.0, 0.5]", True), ("0.5", False)):
        main(command(given | {"model.attention.retention_ratio": ratio, "device": "h100"}, "plan"))
        assert ("differs between steps: times are means" in capsys.readouterr().out) == says
