"""`lrsa` on NPUs by the names in YAML, and its errors. By class_path: test_runs.py."""

from types import SimpleNamespace

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.errors import InputError
from lrsa_lightning.npu import NPUMixedPrecision, resolve_auto
from tests.runs import command, losses

pytestmark = [pytest.mark.npu, pytest.mark.usefixtures("in_tmp_path")]


@pytest.fixture
def on_npu(arguments) -> dict[str, str]:
    names = {"trainer.accelerator": "npu", "trainer.strategy": "npu_single", "trainer.devices": "1"}
    return arguments | names | {"trainer.max_steps": "2"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_names_of_yaml(on_npu, precision):
    """With a worker that was forked and stays off the device."""
    cli = LRSACLI(command(on_npu | {"trainer.precision": precision, "data.num_workers": "1"}))
    assert len(losses()) == 2
    assert cli.trainer.strategy.root_device.type == "npu"
    assert isinstance(cli.trainer.precision_plugin, NPUMixedPrecision) == ("mixed" in precision)


def test_fused_layers_by_one_switch(on_npu):
    LRSACLI(command(on_npu | {"model.fused_layers": "false"}))
    LRSACLI(command(on_npu | {"run_name": "fused", "model.fused_layers": "true"}))
    assert losses("fused") == pytest.approx(losses(), rel=1e-4)


def test_accelerator_npu_alone_never_trains_on_the_cpu(on_npu):
    """An NPU where the command resolves `auto`, else an error that names the strategies."""
    try:
        trained_on = LRSACLI(command(on_npu | {"trainer.strategy": "auto"})).trainer.strategy.root_device.type
    except InputError as error:
        trained_on = "nothing: npu_single" if "npu_single" in str(error) else "nothing"
    assert trained_on in ("npu", "nothing: npu_single")


def test_cann_missing_is_an_error_in_one_line(on_npu, capsys, monkeypatch):
    monkeypatch.delenv("ASCEND_HOME_PATH")
    with pytest.raises(SystemExit):
        main(command(on_npu))
    assert "CANN is not set up" in capsys.readouterr().err


def test_a_class_path_is_resolved_too():
    accelerator = SimpleNamespace(class_path="lrsa_lightning.npu.NPUAccelerator")
    arguments = SimpleNamespace(accelerator=accelerator, strategy="auto", devices="auto", num_nodes=1)
    resolve_auto(arguments)
    assert arguments.strategy == "npu_ddp"
