"""Conditions for using an Ascend NPU, each with its own message. This is the one place that imports torch_npu."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from lrsa_lightning.errors import InputError

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def require_npu() -> None:
    """Imports torch_npu, which defines `torch.npu` and the device "npu".

    Raises:
        InputError: torch_npu or CANN is missing, torch_npu does not fit torch, or no device is visible.
    """
    check_versions()
    check_cann()
    check_visible_devices(os.environ.get(VISIBLE))
    try:
        import torch_npu  # noqa: F401
    except Exception as error:  # broken installations raise many kinds of errors
        raise InputError(f"torch_npu cannot be imported: {str(error).splitlines()[0]}") from error
    if torch.npu.device_count() == 0:
        raise InputError(
            f"no NPU is visible ({VISIBLE}={os.environ.get(VISIBLE, 'not set')}): look at the output of `npu-smi "
            "info`, and check that the container has /dev/davinci*"
        )


def check_versions() -> None:
    """Checks that torch_npu is installed and fits this torch.

    It loads only with torch of its own minor version. Beside a CUDA build of torch it aborts the process without an
    exception, since both allocators register the same settings.

    Raises:
        InputError: it is missing, or it does not fit.
    """
    line = torch_line()
    if torch.version.cuda is not None:
        raise InputError(
            f"accelerator npu needs a CPU build of torch: torch_npu cannot be loaded beside {torch.__version__}, which "
            f"is built for CUDA: pip install --force-reinstall 'torch=={line}.*' --index-url {CPU_BUILDS}"
        )
    if find_spec("torch_npu") is None:
        raise InputError(f"accelerator npu needs torch_npu: pip install 'torch_npu=={line}.*'")
    if not version("torch_npu").startswith(f"{line}."):
        raise InputError(
            f"torch_npu {version('torch_npu')} does not fit torch {torch.__version__}: "
            f"pip install 'torch_npu=={line}.*', or the torch of its line"
        )


def torch_line() -> str:
    """Major and minor version of torch. Those of torch_npu must be equal."""
    return ".".join(torch.__version__.split("+")[0].split(".")[:2])


def check_cann() -> None:
    """Checks that CANN's environment is set. Without it torch_npu warns, and DeepSpeed fails later with a KeyError.

    Raises:
        InputError: it is not set.
    """
    home = os.environ.get("ASCEND_HOME_PATH")
    if not home or not Path(home).is_dir():
        raise InputError(
            f"CANN is not set up: ASCEND_HOME_PATH is {home or 'not set'}. Install CANN (toolkit and kernels) and run "
            "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` in this shell"
        )


def check_visible_devices(visible: str | None) -> None:
    """Checks the order of the visible devices. In any other order CANN finds none and says nothing.

    Raises:
        InputError: the device numbers do not ascend.
    """
    if visible is None:
        return
    numbers = visible.split(",")
    if not all(n.strip().isdigit() for n in numbers) or sorted({int(n) for n in numbers}) != [int(n) for n in numbers]:
        raise InputError(f"{VISIBLE}={visible}: list device numbers in ascending order, such as 0,1,2,3")
