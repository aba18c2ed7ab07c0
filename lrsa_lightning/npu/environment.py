"""What must hold before an Ascend NPU can be used, each with its own message. torch_npu is imported here alone."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from lrsa_lightning.errors import InputError

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def require_npu() -> None:
    """Imports torch_npu, so that `torch.npu` and the device "npu" exist.

    Raises:
        InputError: torch_npu or CANN is missing, they do not fit together, or no device is visible.
    """
    check_versions()
    check_cann()
    check_visible_devices(os.environ.get(VISIBLE))
    try:
        import torch_npu  # noqa: F401
    except Exception as error:  # whatever a broken installation raises, of which there are many kinds
        raise InputError(f"torch_npu cannot be imported: {str(error).splitlines()[0]}") from error
    if torch.npu.device_count() == 0:
        raise InputError(
            f"no NPU is visible ({VISIBLE}={os.environ.get(VISIBLE, 'not set')}): see what `npu-smi info` shows, and "
            "whether the container was given /dev/davinci*"
        )


def check_versions() -> None:
    """Whether torch_npu is there and made for this torch: it loads with no other minor version, and with no CUDA build,
    whose allocator registers the same settings: the process would be aborted, without an exception.

    Raises:
        InputError: it is not.
    """
    line = torch_line()
    if torch.version.cuda is not None:
        raise InputError(
            f"accelerator npu needs a CPU build of torch, and {torch.__version__} is built for CUDA, beside which "
            f"torch_npu cannot be loaded: pip install --force-reinstall 'torch=={line}.*' --index-url {CPU_BUILDS}"
        )
    if find_spec("torch_npu") is None:
        raise InputError(f"accelerator npu needs torch_npu: pip install 'torch_npu=={line}.*'")
    if not version("torch_npu").startswith(f"{line}."):
        raise InputError(
            f"torch_npu {version('torch_npu')} does not fit torch {torch.__version__}: "
            f"pip install 'torch_npu=={line}.*', or the torch of its line"
        )


def torch_line() -> str:
    """Major and minor version of torch, which torch_npu's must equal."""
    return ".".join(torch.__version__.split("+")[0].split(".")[:2])


def check_cann() -> None:
    """Whether CANN's environment is set. Unset, torch_npu only warns, and DeepSpeed fails later with a KeyError.

    Raises:
        InputError: it is not.
    """
    home = os.environ.get("ASCEND_HOME_PATH")
    if not home or not Path(home).is_dir():
        raise InputError(
            f"CANN is not set up: ASCEND_HOME_PATH is {home or 'not set'}. Install CANN (toolkit and kernels) and run "
            "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` in this shell"
        )


def check_visible_devices(visible: str | None) -> None:
    """Whether the devices are listed as CANN reads them: out of order it finds none, without a word.

    Raises:
        InputError: they are not.
    """
    if visible is None:
        return
    numbers = visible.split(",")
    if not all(n.strip().isdigit() for n in numbers) or sorted({int(n) for n in numbers}) != [int(n) for n in numbers]:
        raise InputError(f"{VISIBLE}={visible}: list device numbers in ascending order, such as 0,1,2,3")
