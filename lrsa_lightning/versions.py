"""Which software a run was made with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lrsa_lightning.version import __version__

_PACKAGES = ("transformers", "lightning", "flash-attn-4", "deepspeed", "torch-npu", "wandb")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed, git commits of this package and of the folder."""
    found = {"python": platform.python_version(), "lrsa_lightning": __version__}
    found["torch"] = str(torch.__version__)  # the package's metadata leaves out for which CUDA it was built
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commits = {"lrsa_lightning_commit": Path(__file__).parent, "working_directory_commit": Path.cwd()}
    return found | {name: commit for name, folder in commits.items() if (commit := git_commit(folder))}


def git_commit(folder: Path) -> str | None:
    """The commit a folder is at, marked where files are changed; None when it is in no repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
