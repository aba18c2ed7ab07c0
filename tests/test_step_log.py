"""Metrics of steps: they wait as tensors, and one transfer reads those of several steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lrsa_lightning.cli import main
from lrsa_lightning.errors import Stopped
from lrsa_lightning.step_log import StepLog, write_steps
from tests.runs import command, metrics


class Logger:
    def __init__(self):
        self.rows, self.saves = [], 0

    def log_metrics(self, metrics, step) -> None:
        self.rows.append({"step": step, **metrics})

    def save(self) -> None:
        self.saves += 1


@pytest.fixture
def trainer():
    """After the forward of step 4 of a run; each of the four has a row with a loss and tokens."""
    log, profiler = StepLog(), SimpleNamespace(profile=lambda name: torch.no_grad())
    trainer = SimpleNamespace(lightning_module=SimpleNamespace(step_log=log), profiler=profiler, callbacks=[])
    trainer.loggers, trainer.callback_metrics, trainer.current_epoch = [Logger()], {}, 0
    for trainer.global_step in range(4):
        log.begin(trainer)
        step = trainer.global_step + 1
        tokens = torch.tensor(2**30 + step)
        log.add({"train/loss": torch.tensor(0.1 * step), "train/lr": 1e-5, "train/tokens": tokens})
    return trainer


def expected(step: int) -> dict:
    loss = float(np.float32(0.1 * step))
    return {"step": step, "epoch": 0, "train/loss": loss, "train/lr": 1e-5, "train/tokens": 2**30 + step}


def test_complete_steps_are_written_by_one_transfer(trainer, monkeypatch):
    """The row of step 4 belongs to a step that is not taken yet."""
    transfers, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda z: transfers.append(z) or tolist(z))
    monkeypatch.setattr(torch.Tensor, "item", lambda z: pytest.fail("a value was read by itself"))
    write_steps(trainer)
    (logger,) = trainer.loggers
    assert logger.rows == [expected(step) for step in (1, 2, 3)]
    assert (len(transfers), logger.saves) == (1, 1)
    write_steps(trainer)
    assert len(transfers) == 1


def test_a_step_that_failed_leaves_no_row(trainer):
    trainer.lightning_module.step_log.begin(trainer)
    trainer.global_step += 1
    write_steps(trainer)
    assert [len(row) for row in trainer.loggers[0].rows] == [5, 5, 5, 2]


def test_a_callback_may_add_values_remove_rows_and_stop(trainer):
    class Stops:
        def on_steps_read(self, trainer, module, rows) -> None:
            del rows[2:]
            raise Stopped(SimpleNamespace(local_rank=0), 3, "enough")

    class Adds:
        def on_steps_read(self, trainer, module, rows) -> None:
            rows[0].values["more"] = 1.0

    trainer.callbacks = [Stops(), Adds()]
    with pytest.raises(Stopped, match="enough"):
        write_steps(trainer)
    assert trainer.loggers[0].rows == [{**expected(1), "more": 1.0}, expected(2)]
    assert trainer.callback_metrics["train/tokens"] == 2**30 + 2


@pytest.mark.parametrize(("every", "last", "due"), [(2, 9, [0, 2, 4, 6, 8, 9]), (10, 9, [0, 9]), (1, 3, [0, 1, 2, 3])])
def test_the_first_the_last_and_each_nth_step_are_due(trainer, every, last, due):
    trainer.log_every_n_steps, trainer.max_steps, trainer.should_stop = every, last, False
    log, found = StepLog(), []
    for trainer.global_step in range(last + 1):
        if log.is_due(trainer):
            found.append(trainer.global_step)
            log.read(trainer.global_step)
    assert found == due


def test_a_step_of_fewer_micro_batches_at_the_end_of_an_epoch_has_its_row(arguments, in_tmp_path):
    """Lightning steps after the last micro-batch of an epoch, here the third of steps of two."""
    main(command({**arguments, "trainer.limit_train_batches": "3", "trainer.max_steps": "4"}))
    rows = metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert len({frozenset(row) for row in rows}) == 1
    assert len({row["train/grad_norm"] for row in rows}) == 4
