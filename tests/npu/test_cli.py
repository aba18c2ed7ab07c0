"""`lrsa` on NPUs by the names in YAML, and its errors. By class_path: test_runs.py."""

from types import SimpleNamespace

import pytest

from lrsa_lightning.cli import LRSACLI, main
from lrsa_lightning.npu import NPUMixedPrecision, resolve_auto
from tests.runs import command, losses

pytestmark = [pytest.mark.npu, pytest.mark.usefixtures("in_tmp_path")]


@pytest.fixture
def on_npu(arguments) -> dict[str, str]:
    names = {"trainer.accelerator": "npu", "trainer.strategy": "npu_single", "trainer.devices": "1"}
    return arguments | names | {"trainer.max_steps": "2"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_names_of_yaml(on_npu, precision):
    cli = LRSACLI(command(on_npu | {"trainer.precision": precision}))
    assert len(losses()) == 2
    assert cli.trainer.strategy.root_device.type == "npu"
    assert isinstance(cli.trainer.precision_plugin, NPUMixedPrecision) == ("mixed" in precision)


def test_accelerator_npu_alone_is_an_error_in_one_line(on_npu, capsys):
    """Until the command resolves `auto`; never a run on the CPU."""
    with pytest.raises(SystemExit):
        main(command(on_npu | {"trainer.strategy": "auto"}))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error"))
    assert "npu_single" in line


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
