"""What a run says of an NPU's memory and speed."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lrsa_lightning.callbacks import OutOfMemoryAdvice
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.library_errors import is_out_of_memory
from lrsa_lightning.module import LongContextModule
from tests.runs import callback, command, metrics

pytestmark = [pytest.mark.npu, pytest.mark.usefixtures("in_tmp_path")]
NPU = {"trainer.accelerator": "npu", "trainer.strategy": "npu_single", "trainer.devices": "1"}


def test_a_run_that_is_out_of_memory_is_told_what_lowers_it(arguments, monkeypatch, caplog):
    monkeypatch.delenv("PYTORCH_NPU_ALLOC_CONF", raising=False)
    monkeypatch.setattr(LongContextModule, "forward", lambda *_: torch.empty(2**40, dtype=torch.uint8, device="npu"))
    with caplog.at_level(logging.ERROR), pytest.raises(torch.OutOfMemoryError):
        LRSACLI(command(arguments | NPU))
    (said,) = [record.message for record in caplog.records if "out of memory" in record.message]
    assert said.startswith("npu:0 is out of memory: ")
    for part in (
        " GiB, ", " at the peak", "PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        "model.recompute: full", "data.micro_batch_size: 1 instead of 2", "npu_zero2_sp2.yaml",
    ):  # fmt: skip
        assert part in said


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("NPU out of memory. Tried to allocate")])
def test_older_releases_raise_a_plain_error(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("NPU error, error code is 507011"))


def test_advice_leaves_out_what_is_done_already(monkeypatch, caplog):
    monkeypatch.setenv("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("npu:0")),
        lightning_module=SimpleNamespace(recompute="full"),
        datamodule=SimpleNamespace(micro_batch_size=1),
    )
    OutOfMemoryAdvice().on_exception(trainer, None, torch.OutOfMemoryError())
    assert "To lower it: more devices" in caplog.text
    OutOfMemoryAdvice().on_exception(trainer, None, RuntimeError("something else"))
    assert len(caplog.records) == 1


def test_throughput_waits_for_the_npu_and_knows_its_peak(arguments, monkeypatch):
    waited, genuine = [], torch.accelerator.synchronize
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda d=None: waited.append(d) or genuine(d))
    options = {"trainer.precision": "bf16-mixed", "trainer.callbacks": f"[{callback('Throughput')}]".replace("'", '"')}
    LRSACLI(command(arguments | NPU | options | {"trainer.max_steps": "3"}))
    rows = [row for row in metrics() if "throughput/mfu" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["throughput/mfu"] == pytest.approx(row["throughput/tflops_per_device"] / 354)
        assert row["throughput/peak_memory_gib"] > 0
    assert "npu" in {device.type for device in waited}  # the reading of the metrics waits as well
