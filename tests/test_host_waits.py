"""Between two readings of the metrics the host never waits for the device.

On a CPU, all that depends on weights or on a micro-batch stands for what is on a device: nothing may read it.
"""

import json
import traceback

import pytest
import torch
from lightning import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrsa_lightning.callbacks import non_finite_loss
from lrsa_lightning.cli import main
from lrsa_lightning.optimizer.settings import OptimizerSettings
from tests.runs import callback, command, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
CALLBACKS = ("NonFiniteLoss", "StepProgress", "LossCurve", "Throughput", "Checkpoints")


class Device(TorchDispatchMode):
    """Notes what the host reads of given tensors, and of all that is computed from them."""

    def __init__(self):
        super().__init__()
        self.reads: list[str] = []
        self._there: dict[int, torch.Tensor] = {}  # by address; kept, so that no address is used again

    def put(self, *tensors: torch.Tensor) -> None:
        self._there |= {z.untyped_storage().data_ptr(): z for z in tensors}

    def note(self, *tensors: torch.Tensor) -> bool:
        is_there = any(z.untyped_storage().data_ptr() in self._there for z in tensors)
        if is_there:
            self.reads.append("".join(traceback.format_stack(limit=12)[:-2]))
        return is_there

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [z for z in tree_leaves((args, kwargs)) if isinstance(z, torch.Tensor)]
        by_mask = function is aten.index.Tensor and any(z is not None and z.dtype == torch.bool for z in args[1])
        if function in READS or by_mask:
            self.note(*given)
        out = function(*args, **(kwargs or {}))
        if any(z.untyped_storage().data_ptr() in self._there for z in given):
            self.put(*(z for z in tree_leaves(out) if isinstance(z, torch.Tensor) and z.numel()))
        return out


class Watch(Callback):
    """Watches from the first micro-batch after a step to the end of a later step."""

    reads: list[str]
    _device: Device | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 10 and batch_idx % trainer.accumulate_grad_batches == 0:
            self._device = Device()
            self._device.put(*pl_module.parameters())
            Watch.reads = self._device.reads
            self._patch = pytest.MonkeyPatch()
            for name in ("tolist", "numpy", "cpu", "__array__"):  # do not reach the dispatcher
                self._patch.setattr(torch.Tensor, name, self._noting(getattr(torch.Tensor, name)))
            self._device.__enter__()
        if self._device is not None:
            self._device.put(*(z for z in batch.values() if isinstance(z, torch.Tensor)))

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 13 and self._device is not None:
            self._device.__exit__(None, None, None)
            self._patch.undo()
            self._device = None

    def _noting(self, read):
        device = self._device

        def noting(z, *args, **kwargs):
            device.note(z)
            return read(z, *args, **kwargs)

        return noting


class Reads(Watch):
    """A callback that reads the loss of each step."""

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        float(loss)


@pytest.fixture
def fit(arguments, monkeypatch):
    """Runs 14 steps. Metrics are read after the tenth and the last, as on CUDA; two micro-batches a step."""
    make = OptimizerSettings.make
    monkeypatch.setattr(OptimizerSettings, "make", lambda *args, **_: make(*args[:5], fused=True))
    monkeypatch.setattr(non_finite_loss, "skips_on_device", lambda *_: True)
    # What a forward reads by itself is for tests/attention.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    arguments["data.mixture"] = json.dumps({"train.jsonl": 4})  # no end of an epoch within the run

    def run(watch: str, policy: str = "stop", **options: str) -> list[str]:
        settings = {"NonFiniteLoss": {"policy": policy}, "Checkpoints": {"monitor": "train/loss", "mode": "min"}}
        named = [callback(name, **settings.get(name, {})) for name in CALLBACKS]
        entries = json.dumps([*named, {"class_path": f"tests.test_host_waits.{watch}"}])
        steps = {"trainer.max_steps": "14", "trainer.log_every_n_steps": "7", "trainer.gradient_clip_val": "1.0"}
        main(command({**arguments, **steps, "trainer.callbacks": entries, **options}))
        return getattr(Watch, "reads", [])

    return run


@pytest.mark.parametrize(("mode", "weighting", "policy"), [("LRSA", "sample", "skip"), ("Vanilla", "token", "stop")])
def test_no_step_between_two_readings_reads_the_device(fit, arguments, mode, weighting, policy):
    for key in [key for key in arguments if key.startswith("model.attention.") and mode == "Vanilla"]:
        del arguments[key]
    reads = fit("Watch", policy, **{"model.attention": mode, "data.loss_weighting": weighting})
    assert not reads, f"{len(reads)} reads:\n{reads[0]}"
    assert [row["step"] for row in metrics()] == [*range(1, 15)]


def test_a_read_is_noticed(fit):
    assert len(fit("Reads")) == 2 * 3


class ErrorAtAWait(Callback):
    """Lets torch raise an error where the host waits for a GPU, in the steps that `Watch` watches.

    The last step is left out: it reads all metrics and saves a checkpoint.
    """

    def on_train_batch_start(self, trainer, *_) -> None:
        torch.cuda.set_sync_debug_mode("error" if 10 <= trainer.global_step < 13 else "default")

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 13:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-master"])
def test_no_step_between_two_readings_waits_for_a_gpu(fit, precision, policy):
    device = {"trainer.accelerator": "gpu", "trainer.devices": "1", "trainer.precision": precision}
    try:
        fit("ErrorAtAWait", policy, **device, **{"model.attention.backend": "fill"})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [row["step"] for row in metrics()] == [*range(1, 15)]
