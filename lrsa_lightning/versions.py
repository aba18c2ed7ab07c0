"""The versions of the software that a run uses."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lrsa_lightning.version import __version__

_PACKAGES = (
    *("transformers", "lightning", "triton", "flash-attn-4", "nvidia-cutlass-dsl", "liger-kernel"),
    *("deepspeed", "torch-npu", "bitsandbytes", "torchao", "wandb"),
)


def versions() -> dict[str, str]:
    """Versions of Python and installed packages, and the git commits of this package and of the working directory."""
    found = {"python": platform.python_version(), "lrsa_lightning": __version__}
    found["torch"] = str(torch.__version__)  # the package's metadata does not name the CUDA version
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    commits = {"lrsa_lightning_commit": Path(__file__).parent, "working_directory_commit": Path.cwd()}
    return found | {name: commit for name, folder in commits.items() if (commit := _git_commit(folder))}


def _git_commit(folder: Path) -> str | None:
    """The commit of a folder, marked if files have changed; None if it is not in a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
