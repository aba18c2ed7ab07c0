"""What this machine has, what a run would use of it, and what is missing. Nothing is loaded and nothing is trained."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from lrsa_lightning import npu, precision
from lrsa_lightning.attention import LRSA, flex
from lrsa_lightning.distributed import choice
from lrsa_lightning.errors import InputError
from lrsa_lightning.fused.operators import has_fused_mlp, missing
from lrsa_lightning.npu import NPUAccelerator
from lrsa_lightning.npu.environment import require_npu
from lrsa_lightning.optional_packages import advice, installed, packages, untested
from lrsa_lightning.versions import versions

_HEAD_DIM = 128  # of Qwen2.5 from 1.5B to 72B
_ON_CUDA = ("triton", "liger-kernel")
_DRIVERS = Path("/dev")
_GIB = 2**30


@dataclass(frozen=True)
class Examination:
    """What was found, in words.

    Attributes:
        versions: of Python and packages.
        devices: each kind of device, with its memory.
        space: free memory and disk.
        packages: optional ones, what they are for, and whether their versions are in the tested ranges.
        choices: what a run with the usual configuration uses.
        missing: what this machine's devices need or no test has seen, and how to install it.
    """

    versions: dict[str, str]
    devices: dict[str, str]
    space: dict[str, str]
    packages: dict[str, str]
    choices: dict[str, str]
    missing: list[str]

    def __str__(self) -> str:
        width = max(len(name) for section in asdict(self).values() if isinstance(section, dict) for name in section)
        lines = []
        for title, section in asdict(self).items():
            rows = [f"{name:<{width}}  {text}" for name, text in section.items()] if title != "missing" else section
            lines += ["", title, *(f"  {row}" for row in rows or ["nothing"])]
        return "\n".join(lines[1:])


def examine() -> Examination:
    """Looks at devices, packages, memory and disk."""
    kind = _kind()
    return Examination(versions(), _devices(), _space(), packages(), _choices(kind), _missing(kind))


def _kind() -> str:
    """The device that a run takes."""
    if NPUAccelerator.is_available():
        return "npu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _devices() -> dict[str, str]:
    return {"cpu": f"{os.cpu_count()} cores", "cuda": _cuda() or "none", "npu": _npu() or "none"}


def _cuda() -> str:
    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        name = torch.cuda.get_device_name(number)
        found.append(f"{name} (capability {major}.{minor}), {_gib(free)} of {_gib(total)} free")
    return "; ".join(found)


def _npu() -> str:
    if not NPUAccelerator.is_available():
        return ""
    return f"{torch.npu.device_count()} x {torch.npu.get_device_name(0)}"


def _space() -> dict[str, str]:
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    folders = {"disk here, for runs/": Path.cwd(), "disk of the hub's cache": Path(HF_HUB_CACHE)}
    return {"memory of the host": f"{_gib(memory)} free"} | {name: _disk(path) for name, path in folders.items()}


def _disk(folder: Path) -> str:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{_gib(shutil.disk_usage(there).free)} free ({folder})"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _choices(kind: str) -> dict[str, str]:
    """What `auto` means here. Asks the functions that a run asks."""
    keys = dict.fromkeys(("accelerator", "strategy", "devices"), "auto")
    trainer = SimpleNamespace(**keys, num_nodes=1, precision=precision.NAME)
    npu.resolve_auto(trainer)
    choice.resolve_auto(trainer)
    lacks = missing(kind)
    fused = "plain" if lacks else "fused, with the MLP" if has_fused_mlp(kind) else "fused"
    return {
        "accelerator": kind,
        "trainer.strategy auto": "one device" if trainer.strategy == "auto" else trainer.strategy,
        "trainer.precision": precision.NAME,
        "attention backend auto": _backend(kind),
        "model.fused_layers auto": f"{fused}{f': {lacks}' if lacks else ''}",
    }


def _backend(kind: str) -> str:
    """LRSA's execution, for bfloat16 and the usual head size."""
    z_BXND = torch.empty(1, 1, 1, _HEAD_DIM, dtype=torch.bfloat16, device=kind)
    if not LRSA().execution.runs_flex(z_BXND):
        return "fill"
    return f"flex, kernel {flex.pick_kernel(z_BXND)}"


def _missing(kind: str) -> list[str]:
    lacks = []
    if kind == "cpu" and (_DRIVERS / "nvidiactl").exists():
        lacks.append(f"torch {torch.__version__} cannot use the GPU: install a CUDA build of torch, or a newer driver")
    if kind != "npu" and any(_DRIVERS.glob("davinci[0-9]*")):
        lacks.append(f"the Ascend NPU cannot be used: {_why_no_npu()}")
    wanted = [*_ON_CUDA, *(["flash-attn-4"] if _is_hopper() else [])] if kind == "cuda" else []
    lacks += [advice(name) for name in wanted if not installed(name)] + untested()
    if shutil.which("g++") is None:
        lacks.append("g++, which compiles kernels for torch.compile, Triton and DeepSpeed: apt install g++")
    return lacks


def _is_hopper() -> bool:
    return torch.cuda.get_device_capability()[0] == 9


def _why_no_npu() -> str:
    try:
        require_npu()
    except InputError as reason:
        return str(reason)
    return "its driver finds none"
