"""Runs Python with the genuine torch_npu on stand-in CANN libraries.

`python -m tests.npu.standin.lane -m pytest tests/npu`, or `make test-npu`.

torch_npu is installed, without dependencies, into a side folder of .lrsa_cache, never into the environment; the
libraries it links to are built from the C sources of this folder. What runs this way proves no kernel numerics of the
hardware, no speed, no asynchrony, no real HCCL.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from lrsa_lightning.npu.environment import CPU_BUILDS, torch_line

SOURCES = Path(__file__).parent
REPOSITORY = SOURCES.parents[2]
CACHE = REPOSITORY / ".lrsa_cache" / "npu_lane"
_LIBRARIES = {"ascendcl": "ascendcl.c", "hccl": "hccl.c", "acl_op_compiler": "op_compiler.c", "opapi": "opapi.c"}
_EMPTY = ("ge_runner", "graph", "acl_tdt_channel")  # linked to, but nothing of them is called


class Unavailable(RuntimeError):
    """Why the tests cannot run on this machine."""


def environment() -> dict[str, str]:
    """Environment variables under which `import torch` finds two NPUs.

    Raises:
        Unavailable: torch is a CUDA build, there is no gcc, or no torch_npu for this torch and Python.
    """
    if torch.version.cuda is not None:
        way_out = f"make test-npu VENV=.venv/cpu TORCH_INDEX={CPU_BUILDS}"
        raise Unavailable(f"torch_npu cannot be loaded beside the CUDA build {torch.__version__}: {way_out}")
    site, cann = _install_torch_npu(), _build_libraries()
    paths = [str(REPOSITORY), str(site), str(_autoload_entry()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LD_LIBRARY_PATH": str(cann),
        "ASCEND_HOME_PATH": str(cann),
        "ASCEND_OPP_PATH": str(cann / "opp"),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "1",
        "HCCL_EXEC_TIMEOUT": "60",
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
        "TASK_QUEUE_ENABLE": "0",  # else each operator must wait for torch_npu's queue of launches
        "DS_ACCELERATOR": "npu",  # tests.warm would say cpu
        "OMP_NUM_THREADS": "1",
        "LRSA_NPU_STANDIN": "1",
    }


def _install_torch_npu() -> Path:
    line = torch_line()
    site = CACHE / f"torch_npu-{line}-py{sys.version_info.major}.{sys.version_info.minor}"
    if not (site / "torch_npu").exists():
        partial = site.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        pip = subprocess.run([*command, f"torch_npu=={line}.*"], capture_output=True, text=True)
        if pip.returncode:
            raise Unavailable(f"no torch_npu {line} is available: {pip.stderr.strip().splitlines()[-1]}")
        partial.rename(site)
    return site


def _build_libraries() -> Path:
    """The folder of a CANN installation, as far as torch_npu looks."""
    if shutil.which("gcc") is None:
        raise Unavailable("no gcc to build the stand-in libraries with")
    sources = b"".join((SOURCES / name).read_bytes() for name in _LIBRARIES.values())
    cann = CACHE / f"cann-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not (cann / "compiler").exists():
        for folder in ("opp", "runtime"):
            (cann / folder).mkdir(parents=True, exist_ok=True)
        for name, source in _LIBRARIES.items() | dict.fromkeys(_EMPTY, "empty.c").items():
            _compile(cann / f"lib{name}.so", SOURCES / source)
        (cann / "ascend_toolkit_install.info").write_text("version=9.1.0\n", encoding="utf-8")
        (cann / "compiler").mkdir()
    return cann


def _compile(library: Path, source: Path) -> None:
    flags = ["-O2", "-fPIC", "-shared", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library), "-lrt"], check=True)


def _autoload_entry() -> Path:
    """A folder with the entry point by which `import torch` replaces the operators, in child processes too."""
    folder = CACHE / "autoload"
    information = folder / "lrsa_npu_standin-0.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lrsa-npu-standin\nVersion: 0\n")
    (information / "entry_points.txt").write_text("[torch.backends]\nstandin = tests.npu.standin.operators:autoload\n")
    return folder


def main() -> None:
    """Runs the arguments with this Python. Where the lane is unavailable, it prints the reason and succeeds."""
    try:
        prepared = environment()
    except Unavailable as reason:
        print(f"tests/npu skipped: {reason}")
        return
    sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], env=prepared).returncode)


if __name__ == "__main__":
    main()
