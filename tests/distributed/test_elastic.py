"""Elastic retention on several ranks: each has the step's ratio, and the steps are those of one process."""

import json
from pathlib import Path

import pytest
from lightning import Callback

from tests.distributed.fits import Fit, fit, strategy

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RATIOS = [1.0, 0.5, 0.25]
SHARED = [(name, kind) for name in ("ddp", "zero1", "zero3", "fsdp2") for kind in ("ulysses", "context")]


class KeepRatios(Callback):
    """Writes the ratio of each micro-batch of this rank, and what its attention keeps of a chunk then."""

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        ratio = pl_module.step_attention.step_metrics()["train/retention_ratio"]
        with (Path(trainer.default_root_dir) / f"ratios-{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {ratio} {pl_module.attention.rule(0).kept}\n")


def run(arguments, ranks: int, folder: Path, **chosen: str) -> tuple[Fit, list[str]]:
    """A fit of four steps, and what each rank has written."""
    folder.mkdir()
    options = {**arguments, **chosen, "trainer.max_steps": "4", "data.micro_batch_size": "1"}
    options |= {"model.attention.retention_ratio": json.dumps(RATIOS)}
    options["trainer.callbacks"] = json.dumps([{"class_path": "tests.distributed.test_elastic.KeepRatios"}])
    done = fit(ranks, options, folder)
    return done, [(folder / "runs" / "x" / f"ratios-{rank}").read_text() for rank in range(ranks)]


def assert_equal_steps(arguments, tmp_path, ranks: int, chosen: dict[str, str]) -> None:
    one, (alone,) = run(arguments, 1, tmp_path / "one")
    several, of_ranks = run(arguments, ranks, tmp_path / "several", **chosen)
    steps = {tuple(line.split()) for line in alone.splitlines()}
    assert {*one.curve("train/retention_ratio")} == {*RATIOS}
    assert sorted((step, float(ratio), int(kept)) for step, ratio, kept in steps) == [
        (str(step), ratio, int(16 * ratio)) for step, ratio in enumerate(one.curve("train/retention_ratio"))
    ]
    assert [{tuple(line.split()) for line in own.splitlines()} for own in of_ranks] == [steps] * ranks
    assert several.curve("train/retention_ratio") == one.curve("train/retention_ratio")
    for name in ("train/loss", "train/grad_norm"):
        assert several.curve(name) == pytest.approx(one.curve(name), rel=2e-5), name


def test_two_ranks_with_rows_of_their_own(arguments, tmp_path):
    assert_equal_steps(arguments, tmp_path, 2, strategy("ddp"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), SHARED)
def test_ranks_that_share_rows(arguments, tmp_path, name, kind):
    assert_equal_steps(arguments, tmp_path, 2, {**strategy(name, 2, kind), "model.recompute": "full"})


@pytest.mark.slow
def test_two_groups_of_two_ranks(arguments, tmp_path):
    assert_equal_steps(arguments, tmp_path, 4, strategy("ddp", 2, "context"))
