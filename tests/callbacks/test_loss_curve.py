"""The metrics of training, and their picture."""

import json
import os
from pathlib import Path

import pytest
import torch

from lrsa_lightning.callbacks import LossCurve, loss_curve
from lrsa_lightning.callbacks.curves import draw_curves
from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.errors import InputError
from lrsa_lightning.module import LongContextModule
from tests.conftest import longalign_row, write_jsonl
from tests.runs import callback, checkpoints, command, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")


BUDGETS = ["r1", "r0.5", "r0.25"]


def train_rows(run: str = "x") -> list[dict]:
    return [row for row in metrics(run) if "train/loss" in row]


def curve(**options) -> str:
    return json.dumps([callback("LossCurve", **options)])


def test_a_run_logs_the_tokens_of_its_samples_again_after_a_resume(arguments):
    """Six steps of four samples are an epoch of all 24: each token of the dataset counts once."""
    arguments["trainer.callbacks"] = checkpoints(2)
    cli = LRSACLI(command({**arguments, "trainer.max_steps": "12"}))
    samples = cli.datamodule._train.samples
    labels = sum(sample.num_labels for sample in samples)
    total = sum(len(sample.ids) - 1 for sample in samples)
    whole = train_rows()
    assert (whole[5]["train/tokens"], whole[5]["train/answer_tokens"]) == (total, labels)
    assert (whole[11]["train/tokens"], whole[11]["train/answer_tokens"]) == (2 * total, 2 * labels)
    main(["fit", "--config=runs/x/config.yaml", "--ckpt_path=runs/x/checkpoints/step=8.ckpt"])
    keys = ("step", "train/loss", "train/grad_norm", "train/lr", "train/tokens", "train/answer_tokens")
    assert [[row[key] for key in keys] for row in train_rows()] == [[row[key] for key in keys] for row in whole]


def test_validating_a_checkpoint_cuts_nothing(arguments, train_file):
    arguments |= {"trainer.callbacks": checkpoints(2), "trainer.max_steps": "4", "data.val_files": str(train_file)}
    main(command(arguments))
    main(command({**arguments, "ckpt_path": "runs/x/checkpoints/step=2.ckpt"}, "validate"))
    assert [row["step"] for row in train_rows()] == [1, 2, 3, 4]
    assert [row["step"] for row in metrics() if "val/loss" in row] == [2]


@pytest.mark.parametrize("clip", [{"trainer.gradient_clip_val": "0.1"}, {"trainer.gradient_clip_val": "null"}])
def test_the_gradient_norm_is_the_one_before_clipping(arguments, monkeypatch, clip):
    seen, clipped = [], []
    clip_gradients = LongContextModule.configure_gradient_clipping

    def norm_of(parameters):
        return float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double().norm())

    def measured(self, optimizer, *args, **kwargs):
        seen.append(norm_of(self.parameters()))
        clip_gradients(self, optimizer, *args, **kwargs)
        clipped.append(norm_of(self.parameters()))

    monkeypatch.setattr(LongContextModule, "configure_gradient_clipping", measured)
    main(command({**arguments, **clip, "trainer.max_steps": "3"}))
    assert [row["train/grad_norm"] for row in train_rows()] == pytest.approx(seen, rel=1e-5)
    limit = 0.1 if "0.1" in clip.values() else None
    assert clipped == pytest.approx([limit] * 3 if limit else seen, rel=1e-4)


def test_the_answer_token_loss_of_weighted_samples_is_that_of_weighted_tokens(arguments, tmp_path):
    """After the first step the two runs have different weights."""
    rows = [longalign_row("Red.\n\nBlue.", "What?", "Red, blue. " * (1 + i)) for i in range(4)]
    arguments |= {"trainer.max_steps": "1", "data.train_files": str(write_jsonl(tmp_path / "uneven.jsonl", rows))}
    main(command({**arguments, "run_name": "token"}))
    main(command({**arguments, "data.loss_weighting": "sample"}))
    (token,), (sample,) = train_rows("token"), train_rows()
    assert token["train/answer_loss"] == token["train/loss"]
    assert sample["train/answer_loss"] == pytest.approx(token["train/loss"], rel=1e-6)
    assert sample["train/loss"] != pytest.approx(token["train/loss"], rel=1e-6)


def test_the_picture_is_refreshed_and_drawn_over_a_reference(arguments, monkeypatch):
    drawn = []

    def noted(runs, path, smoothing):
        drawn.append({name: len([row for row in rows if "train/loss" in row]) for name, rows in runs.items()})
        return draw_curves(runs, path, smoothing)

    monkeypatch.setattr(loss_curve, "draw_curves", noted)
    main(command({**arguments, "trainer.callbacks": curve(every_n_steps=2), "run_name": "y"}))
    assert drawn == [{"y": 6}]  # there was no time for more
    drawn.clear()
    monkeypatch.setattr(loss_curve, "_TIME_FRACTION", 1e9)
    arguments["trainer.callbacks"] = curve(every_n_steps=2, reference="runs/y")
    main(command({**arguments, "trainer.max_steps": "4"}))
    reference = {"y (reference)": 6}
    assert drawn == [{"x": 1, **reference}, {"x": 3, **reference}, {"x": 4, **reference}]
    assert Path("runs/x/loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("runs/x").glob(".loss*"))


def test_a_reference_without_losses_fails_before_training(arguments, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(command({**arguments, "trainer.callbacks": curve(reference=str(tmp_path))}))
    assert "holds no train/loss" in capsys.readouterr().err
    assert not Path("runs/x/metrics.jsonl").exists()


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (saved.append(self), Path(path).touch()))
    return saved


def test_the_picture_shows_every_curve(tmp_path, figures):
    own = [
        {"step": i, "train/loss": 3.0 - i, "train/answer_loss": 2.0 - i, "train/lr": 0.1, "train/grad_norm": 1.0 + i,
         "train/tokens": 10.0 * i} for i in range(3)
    ]  # fmt: skip
    reference = [{"step": i, "train/loss": 4.0} for i in range(2)] + [{"step": 1, "val/loss": 5.0}]
    assert draw_curves({"own": own, "other": reference}, tmp_path / "a.png", 0.5)
    loss, norm, rate, tokens = figures[0].axes
    labels = [line.get_label() for line in loss.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["other: per label tokens", "other: validation", "own: per sample", "own: per label tokens"]
    assert [list(panel.get_lines()[-1].get_ydata()) for panel in (norm, rate, tokens)] == [
        [1.0, 2.0, 3.0], [0.1, 0.1, 0.1], [0.0, 10.0, 20.0]
    ]  # fmt: skip
    assert not draw_curves({"own": []}, tmp_path / "b.png", 0.5)


def test_the_raw_curve_is_never_cut_off(tmp_path, figures):
    draw_curves({"own": [{"step": i, "train/loss": loss} for i, loss in enumerate([4.0, 12.0, 3.0, 3.0])]},
                tmp_path / "a.png", 0.9)  # fmt: skip
    low, high = figures[0].axes[0].get_ylim()
    assert low < 3 < 12 < high
    assert all(tick == int(tick) for tick in figures[0].axes[0].get_xticks())  # steps are whole numbers


def test_rulers_means_at_the_greatest_length_are_in_the_picture(tmp_path, figures):
    """Scores exist at both ends; in between, only references are rated."""
    rows = [{"step": i, "train/loss": 1.0} for i in range(3)]
    for i in range(3):
        rows.append(
            {"step": i} | {f"ruler_exact_match/subset_mean/{n}/{b}": 10.0 * i for n in (512, 4096) for b in BUDGETS}
        )
    draw_curves({"own": rows, "other": rows[:3]}, tmp_path / "a.png", 0.9)
    ruler = figures[-1].axes[1]
    assert (ruler.get_title(), ruler.get_ylim()) == ("RULER references matched, %, 4096 tokens", (0, 100))
    assert [line.get_label() for line in ruler.get_lines()] == BUDGETS
    assert list(ruler.get_lines()[0].get_ydata()) == [0, 10, 20]
    rows += [{"step": i, "ruler/subset_mean/512/r1": 50.0} for i in range(3)]
    draw_curves({"own": rows}, tmp_path / "a.png", 0.9)
    assert figures[-1].axes[1].get_title() == "RULER score, 512 tokens"


@pytest.mark.parametrize(
    "option", [{"smoothing": 1}, {"every_n_steps": 0}, {"filename": "../x.png"}, {"filename": "config.yaml"}]
)
def test_arguments_out_of_range_are_refused(option):
    with pytest.raises(InputError, match=rf"LossCurve\.{next(iter(option))} is"):
        LossCurve(**option)


def test_a_full_disk_ends_no_training(arguments, caplog):
    """Each file besides checkpoints: one warning at the first failure, and the number of failures at the end."""
    run = Path("runs/x")
    for name in ("metrics.jsonl", ".loss_curve.png", f"ruler/.step-000000.jsonl.{os.getpid()}.partial"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).symlink_to("/dev/full")
    ruler = callback(
        "RulerEval", tasks=["niah_single_1"], lengths=[512], budgets=[1], num_samples=1, generation="never"
    )
    main(command({**arguments, "trainer.callbacks": json.dumps([ruler, callback("LossCurve")])}))
    said = [record.getMessage() for record in caplog.records if "[Errno" in record.getMessage()]
    files = ["RULER's records, tables and pictures", "loss_curve.png", "runs/x/metrics.jsonl"]
    assert sorted(text.split(":")[0] for text in said) == files
    assert "runs/x/metrics.jsonl lacks the last 8 rows" in caplog.text
    assert (run / "ruler/step-000006.jsonl").exists()
