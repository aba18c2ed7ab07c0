"""The vLLM of this Python: which version it is, for which devices, and how its server starts. It is not imported."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, packages_distributions, version

from lrsa_lightning.errors import InputError
from lrsa_lightning.serving.vllm.settings import TESTED

_GROUP, _PLUGIN = "vllm.general_plugins", "lrsa"
_INSTALL = "pip install 'lrsa-lightning[serve]' (CUDA) or 'lrsa-lightning[serve-cpu]', in an environment of its own"


@dataclass(frozen=True)
class InstalledVLLM:
    """What is installed.

    Attributes:
        distribution: vllm, or a repackaging of it for CPUs.
        version: of it.
    """

    distribution: str
    version: str

    @classmethod
    def find(cls) -> "InstalledVLLM":
        """Raises an InputError, with the command that mends it, if vLLM or our plug-in is missing or untested."""
        names = packages_distributions().get("vllm")
        if not names:
            raise InputError(f"vLLM is not installed here: {_INSTALL}")
        name = "vllm" if "vllm" in names else names[0]
        found = cls(name, version(name))
        if not found.version.startswith(TESTED):
            raise InputError(f"vLLM {found.version} is untested, and its classes change; {TESTED[0]}* is: {_INSTALL}")
        check_plugin()
        return found

    @property
    def device_type(self) -> str:
        """Of the devices that it was built for: cpu or cuda."""
        return "cpu" if "cpu" in f"{self.distribution} {self.version}" else "cuda"

    def server(self, model: str, options: Sequence[str]) -> list[str]:
        """The command line of its server for a model.

        `vllm serve` asks for the version of a distribution called vllm, so repackagings cannot run it.
        """
        if self.distribution == "vllm":
            start = ["vllm.entrypoints.cli.main", "serve", model]
        else:
            start = ["vllm.entrypoints.openai.api_server", "--model", model]
        return [sys.executable, "-m", *start, *options]


def check_plugin() -> None:
    """Raises an InputError if vLLM would not load our plug-in."""
    if _PLUGIN not in entry_points(group=_GROUP).names:
        raise InputError("vLLM does not find the plug-in of lrsa-lightning: install the package (pip install -e .)")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        raise InputError(f"VLLM_PLUGINS={allowed} leaves out {_PLUGIN!r}, so vLLM refuses the folder: add it")
