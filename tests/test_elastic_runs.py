"""Runs with elastic retention: what is logged, resumes, validations, FLOPs, plans, exports and refusals."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from lrsa_lightning import LRSA
from lrsa_lightning.attention.retention import Retention
from lrsa_lightning.cli import main
from lrsa_lightning.flops import DecoderFlops
from lrsa_lightning.model_folder.export import export
from tests.conftest import TINY_MODEL
from tests.runs import callback, checkpoints, command, kept_curve, losses, metrics, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RATIOS = [1.0, 0.5, 0.25]
CURRICULUM = {"model.attention.retention_schedule": "curriculum"}


@pytest.fixture
def elastic(arguments) -> dict[str, str]:
    return {**arguments, "model.attention.retention_ratio": json.dumps(RATIOS)}


def rows_of(run: str = "x") -> list[dict]:
    return [row for row in metrics(run) if "train/loss" in row]


def ratios_of(run: str = "x") -> list[float]:
    return [row["train/retention_ratio"] for row in rows_of(run)]


def drawn(seed: int, steps: int) -> list[float]:
    retention = Retention.of(RATIOS, None, "random", None)
    return [RATIOS[retention.place(step, steps, seed)] for step in range(steps)]


def test_each_step_logs_its_ratio_and_the_seed_decides(elastic, arguments):
    main(command(elastic))
    assert ratios_of() == drawn(42, 6)
    assert {*ratios_of()} == {*RATIOS}
    main(command({**elastic, "seed_everything": "7", "run_name": "other"}))
    assert ratios_of("other") == drawn(7, 6) != ratios_of()
    main(command({**arguments, "run_name": "fixed"}))
    assert not any("train/retention_ratio" in row for row in metrics("fixed"))


def test_the_first_step_is_that_of_a_fixed_run(elastic, arguments):
    """Loss and gradient norm, whose micro-batches all have the ratio."""
    for seed, ratio in ((42, drawn(42, 1)[0]), (7, drawn(7, 1)[0])):
        options = {"seed_everything": str(seed), "trainer.max_steps": "1", "data.micro_batch_size": "1"}
        main(command({**elastic, **options, "run_name": f"elastic{seed}"}))
        fixed = {**arguments, **options, "model.attention.retention_ratio": str(ratio), "run_name": f"fixed{seed}"}
        main(command(fixed))
        for name in ("train/loss", "train/grad_norm"):
            assert rows_of(f"elastic{seed}")[0][name] == rows_of(f"fixed{seed}")[0][name]
    assert drawn(42, 1) != drawn(7, 1)


EPOCHS = {"trainer.max_steps": "-1", "trainer.max_epochs": "2"}  # of six steps


@pytest.mark.parametrize(
    "extra", [{}, CURRICULUM, {**CURRICULUM, **EPOCHS}], ids=["random", "curriculum", "curriculum over epochs"]
)
def test_a_resumed_run_equals_the_uninterrupted_one(elastic, extra):
    main(command({**elastic, "trainer.callbacks": kept_curve(), "trainer.max_steps": "8", **extra}))
    whole, ratios = losses(), ratios_of()
    last = Path(f"runs/x/checkpoints/step={len(ratios)}.ckpt")
    state = torch.load(last, weights_only=True)["state_dict"]
    for stop in (3, 7):
        last.unlink()
        main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt"])
        assert losses() == whole
        assert ratios_of() == ratios
        again = torch.load(last, weights_only=True)["state_dict"]
        assert all(torch.equal(state[name], again[name]) for name in state)


def test_recomputation_changes_nothing(elastic):
    for policy in ("none", "selective", "full"):
        main(command({**elastic, "model.recompute": policy, "run_name": policy}))
    assert losses("none") == losses("selective") == losses("full")


def test_a_curriculum_divides_steps_and_epochs(elastic):
    main(command({**elastic, **CURRICULUM, "model.attention.retention_weights": "[2, 1, 3]"}))
    assert ratios_of() == [1.0, 1.0, 0.5, 0.25, 0.25, 0.25]
    main(command({**elastic, **CURRICULUM, **EPOCHS, "run_name": "epochs"}))
    assert ratios_of("epochs") == [1.0] * 4 + [0.5] * 4 + [0.25] * 4


def test_a_curriculum_without_an_end_is_refused(elastic, capsys):
    said = refusal(capsys, command({**elastic, **CURRICULUM, "trainer.max_steps": "-1"}))
    assert "retention_schedule='curriculum'" in said
    assert "set trainer.max_steps or trainer.max_epochs" in said


def test_a_validation_has_the_serving_ratio(elastic, arguments, train_file):
    validation = {"data.val_files": str(train_file), "trainer.callbacks": checkpoints(3), "trainer.max_steps": "3"}
    main(command({**elastic, **validation, "trainer.val_check_interval": "6"}))
    logged = [row["val/loss"] for row in metrics() if "val/loss" in row]
    of_ratio = {}
    for ratio in RATIOS:
        fixed = {**arguments, **validation, "model.attention.retention_ratio": str(ratio), "run_name": f"r{ratio}"}
        checkpoint = str(Path("runs/x/checkpoints/step=3.ckpt").absolute())
        main(command({**fixed, "ckpt_path": checkpoint}, "validate"))
        of_ratio[ratio] = metrics(f"r{ratio}")[-1]["val/loss"]
    assert len({*of_ratio.values()}) == 3
    assert logged == [of_ratio[0.25]]


def test_the_operations_of_each_step_are_those_of_its_ratio(elastic, tokenizer):
    """Also where one reading has the metrics of all steps."""
    throughput = json.dumps([callback("Throughput", window=1)])
    main(command({**elastic, "trainer.callbacks": throughput, "trainer.log_every_n_steps": "6"}))
    rows, config = rows_of(), SimpleNamespace(**TINY_MODEL, vocab_size=len(tokenizer))
    for before, row in pairwise(rows):
        answers = int(row["train/answer_tokens"] - before["train/answer_tokens"])
        mode = LRSA(16, row["train/retention_ratio"], 4)
        expected = DecoderFlops.of(config).training({160: 4}, answers, mode)
        parts = ("data", "compute", "evaluation", "checkpoints", "other")
        seconds = sum(row[f"throughput/seconds/{part}"] for part in parts)
        assert row["throughput/tflops_per_device"] == pytest.approx(expected.real / seconds / 1e12, rel=1e-3)
        assert row["throughput/tflops_per_device_dense"] == pytest.approx(expected.dense / seconds / 1e12, rel=1e-3)


def test_an_export_names_one_ratio_and_those_of_training(elastic, capsys):
    serving = {"model.attention.serving_ratio": "0.5", "trainer.max_steps": "1"}
    main(command({**elastic, **serving, "trainer.callbacks": checkpoints(1)}))
    saved = yaml.safe_load(Path("runs/x/config.yaml").read_text())["model"]["attention"]["init_args"]
    assert saved["retention_ratio"] == RATIOS
    export(Path("runs/x"), Path("folder"))
    named = json.loads(Path("folder/config.json").read_text())["lrsa"]
    assert (named["retention_ratio"], named["trained_ratios"]) == (0.5, RATIOS)
    card = Path("folder/README.md").read_text()
    assert "| retention_ratio | 0.5 |" in card
    assert "| trained_ratios | [1.0, 0.5, 0.25] |" in card
    main(["export", "runs/x", "--output", "dense", "--serving_ratio", "1"])
    named = json.loads(Path("dense/config.json").read_text())["lrsa"]
    assert (named["retention_ratio"], named["trained_ratios"], named["lag_size"]) == (1.0, RATIOS, 16)
    said = refusal(capsys, ["export", "runs/x", "--output", "other", "--serving_ratio", "0.3"])
    assert "serving_ratio 0.3: the run trained the ratios 1.0, 0.5, 0.25" in said
    assert not Path("other").exists()


def test_a_run_with_one_ratio_exports_no_other(two_steps, capsys):
    said = refusal(capsys, ["export", "runs/x", "--output", "other", "--serving_ratio", "0.25"])
    assert "serving_ratio 0.25: the run was not elastic" in said


def test_a_misspelt_key_is_named(elastic, capsys):
    said = refusal(capsys, command({**elastic, "model.attention.retention_wieght": "[1, 2, 3]"}))
    assert "did you mean retention_weights?" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retention_ratio": "[1.0, 2.0]"}, "LRSA.retention_ratio is 2.0, but must be a number above 0, at most 1"),
        ({"retention_ratio": "[]"}, "retention_ratio [] is empty"),
        ({"retention_weights": "[1, 0, 1]"}, "LRSA.retention_weights is 0, but must be a finite number above 0"),
        ({"retention_weights": "[1]"}, "retention_weights [1.0] must have a weight for each of retention_ratio"),
        ({"serving_ratio": "0.3"}, "serving_ratio 0.3 is not in retention_ratio [1.0, 0.5, 0.25]"),
    ],
)
def test_wrong_settings_end_the_command(elastic, capsys, given, said):
    assert said in refusal(capsys, command(elastic | {f"model.attention.{key}": value for key, value in given.items()}))
