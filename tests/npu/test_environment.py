"""Errors before anything runs: what is missing, what does not fit, what to do."""

import os
import subprocess
import sys

import pytest
import torch

from lrsa_lightning.distributed import deepspeed
from lrsa_lightning.errors import InputError
from lrsa_lightning.npu import NPUAccelerator, accelerator, environment, strategies


def test_importing_the_package_leaves_torch_npu_alone():
    code = "import sys, lrsa_lightning, lrsa_lightning.npu; sys.exit('torch_npu' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})


@pytest.fixture
def cpu_build(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)


def test_a_cuda_build_of_torch(monkeypatch, caplog):
    """The first check: torch_npu installed beside it would abort every `import torch`."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs a CPU build of torch.*pip install.*whl/cpu"):
        environment.require_npu()
    monkeypatch.setattr(accelerator, "find_spec", lambda name: object())
    assert not NPUAccelerator.is_available()
    assert "needs a CPU build" in caplog.text


@pytest.mark.usefixtures("cpu_build")
def test_torch_npu_missing(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'torch_npu==\d+\.\d+\.\*'"):
        environment.require_npu()


@pytest.mark.usefixtures("cpu_build")
def test_versions_that_do_not_match(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: object())
    monkeypatch.setattr(environment, "version", lambda name: "2.1.0")
    with pytest.raises(InputError, match=r"torch_npu 2\.1\.0 does not fit torch"):
        environment.require_npu()


@pytest.mark.parametrize("home", [None, "/nowhere/ascend"])
def test_cann_missing(monkeypatch, home):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    if home:
        monkeypatch.setenv("ASCEND_HOME_PATH", home)
    with pytest.raises(InputError, match=r"set_env\.sh"):
        environment.check_cann()


@pytest.mark.parametrize("visible", ["1,0", "0,0", "", "a"])
def test_visible_devices_out_of_order(visible):
    with pytest.raises(InputError, match="ascending"):
        environment.check_visible_devices(visible)


@pytest.mark.parametrize("visible", [None, "0", "2,5"])
def test_visible_devices_in_order(visible):
    environment.check_visible_devices(visible)


@pytest.mark.npu
def test_deepspeeds_device_is_set_before_torch_npu_is_imported(monkeypatch):
    """DeepSpeed would choose by the installed packages, and ZeroStrategy by the imported ones."""
    monkeypatch.setenv("DS_ACCELERATOR", "")  # so that the test restores it
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(strategies, "find_spec", lambda name: object())
    monkeypatch.setattr(deepspeed, "_device_type", lambda: "cpu")
    strategies.NPUDeepSpeedStrategy(stage=2)
    assert os.environ["DS_ACCELERATOR"] == "npu"
