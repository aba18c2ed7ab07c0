"""Trainer.fit on NPUs: precisions, devices, refusals."""

import lightning
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, TensorDataset

from lrsa_lightning.errors import InputError
from lrsa_lightning.npu import NPUAccelerator, NPUDDPStrategy, resolve_auto

pytestmark = pytest.mark.npu
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Regression(lightning.LightningModule):
    def __init__(self, fused: bool = False):
        super().__init__()
        self.fused = fused
        self.hidden, self.out = torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
        self.losses: list[float] = []

    def training_step(self, batch, batch_idx):
        hidden = self.hidden(batch[0])
        self.computed_in = hidden.dtype
        loss = self.out(hidden.relu()).float().square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=self.fused)

    def train_dataloader(self):
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs), batch_size=4)


def fit(accelerator="npu", strategy="npu_single", fused=False, **options):
    lightning.seed_everything(1, verbose=False)
    module = Regression(fused)
    trainer = lightning.Trainer(
        accelerator=accelerator, strategy=strategy, **{"devices": 1, "max_steps": 6, **QUIET, **options}
    )
    trainer.fit(module)
    return module, trainer


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [
        ("32-true", torch.float32, 1e-6),
        ("bf16-true", torch.bfloat16, 0.05),
        ("bf16-mixed", torch.bfloat16, 0.02),
        ("16-mixed", torch.float16, 5e-3),
    ],
)
def test_losses_of_the_cpu_in_four_precisions(precision, dtype, tolerance):
    """Lightning alone would compute bf16-mixed and 16-mixed in float32."""
    expected, _ = fit("cpu", "auto", precision="32-true")
    module, _ = fit(precision=precision)
    assert module.computed_in == dtype
    assert module.losses == pytest.approx(expected.losses, rel=tolerance, abs=tolerance)
    assert next(module.parameters()).device.type == "cpu"  # Lightning's teardown brought it back


def test_float16_scales_its_loss():
    """Lightning makes a scaler for CUDA, which does nothing on other devices."""
    _, trainer = fit(precision="16-mixed", max_steps=1)
    assert trainer.precision_plugin.scaler.get_scale() == 2**16


def test_the_requested_device():
    _, trainer = fit(devices=[1], max_steps=1)
    assert trainer.strategy.root_device == torch.device("npu", 1)
    assert trainer.num_devices == 1


@pytest.mark.parametrize(("precision", "fused"), [("32-true", False), ("32-true", True), ("bf16-mixed", False)])
def test_clipping_changes_the_steps(precision, fused):
    clipped, _ = fit(precision=precision, fused=fused, gradient_clip_val=1e-3, max_steps=6)
    free, _ = fit(precision=precision, fused=fused, max_steps=6)
    assert clipped.losses[1:] != free.losses[1:]


def test_strategy_auto_never_trains_on_the_cpu():
    with pytest.raises(InputError, match=r"device cpu.*npu_single"):
        fit(strategy="auto")


@pytest.mark.parametrize("strategy", [lambda: "ddp", lambda: SingleDeviceStrategy("npu:0")])
def test_strategies_of_lightning_are_refused(strategy):
    with pytest.raises(InputError, match="does not run on NPUs"):
        fit(strategy=strategy(), precision="bf16-mixed")


@pytest.mark.parametrize("strategy", ["npu_single", "npu_ddp"])
def test_strategies_for_npus_refuse_the_cpu(strategy):
    with pytest.raises(InputError, match="is for accelerator npu, not cpu"):
        fit("cpu", strategy)


def test_one_device_strategy_with_two_devices():
    with pytest.raises(InputError, match="npu_ddp"):
        fit(devices=2)


@pytest.mark.parametrize("devices", [3, "3", [0, 7], "0,2"])
def test_more_devices_than_visible(devices):
    with pytest.raises(InputError, match="2 are visible"):
        fit(devices=devices)


@pytest.mark.parametrize(("devices", "numbers"), [(2, [0, 1]), (-1, [0, 1]), ("1", [0]), ("0,1", [0, 1]), ([1], [1])])
def test_devices_as_lightning_writes_them(devices, numbers):
    assert NPUAccelerator.parse_devices(devices) == numbers


def test_processes_cannot_be_forked():
    with pytest.raises(InputError, match="popen or spawn"):
        NPUDDPStrategy(start_method="fork")


def test_visible_devices_out_of_order(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,0")
    with pytest.raises(InputError, match="ascending"):
        fit()


def test_cann_missing(monkeypatch):
    monkeypatch.delenv("ASCEND_HOME_PATH")
    with pytest.raises(InputError, match=r"set_env\.sh"):
        fit()


def test_auto_says_why_it_does_not_take_an_npu(monkeypatch, caplog):
    monkeypatch.delenv("ASCEND_HOME_PATH")
    assert not NPUAccelerator.is_available()
    assert "CANN is not set up" in caplog.text


class Arguments:
    def __init__(self, **values):
        vars(self).update({"accelerator": "auto", "strategy": "auto", "devices": "auto", "num_nodes": 1, **values})


@pytest.mark.parametrize(
    ("given", "accelerator", "strategy"),
    [
        ({}, "npu", "npu_ddp"),
        ({"devices": 1}, "npu", "npu_single"),
        ({"devices": [1]}, "npu", "npu_single"),
        ({"devices": 1, "num_nodes": 2}, "npu", "npu_ddp"),
        ({"precision": "bf16-master"}, "npu", "npu_deepspeed"),
        ({"accelerator": "cpu"}, "cpu", "auto"),
        ({"accelerator": "npu", "strategy": "npu_ddp", "devices": 1}, "npu", "npu_ddp"),
    ],
)
def test_auto_is_resolved(given, accelerator, strategy):
    arguments = Arguments(**given)
    resolve_auto(arguments)
    assert (arguments.accelerator, arguments.strategy) == (accelerator, strategy)


def test_device_statistics():
    statistics = NPUAccelerator().get_device_stats(torch.device("npu:0"))
    assert "allocated_bytes.all.peak" in statistics
