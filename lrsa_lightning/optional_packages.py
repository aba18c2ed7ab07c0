"""The packages that a run may use: what they are for, which are installed, and whether their versions are tested."""

from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lrsa_lightning.errors import InputError
from lrsa_lightning.serving.installed_vllm import check_plugin

_OURS = "pip install 'lrsa-lightning[{}]'"
# What a package is for, and how to install it.
_PACKAGES = {
    "triton": ("selection and decoding on CUDA GPUs", "it comes with a CUDA build of torch"),
    "flash-attn-4": ("attention on Hopper GPUs", _OURS.format("cuda")),
    "liger-kernel": ("fused layers on CUDA GPUs", _OURS.format("cuda")),
    "deepspeed": ("ZeRO (sp_deepspeed)", _OURS.format("deepspeed")),
    "torch-npu": ("Ascend NPUs", _OURS.format("npu")),
    "bitsandbytes": ("4-bit weights and 8-bit optimizers on CUDA GPUs", _OURS.format("optimizers")),
    "torchao": ("optimizers and weights of 4 and 8 bits", _OURS.format("optimizers")),
    "accelerate": ("quantised weights and GGUF files", _OURS.format("optimizers")),
    "gguf": ("models in GGUF files", _OURS.format("gguf")),
    "lm_eval": ("the tasks of lm-eval", _OURS.format("eval")),
    "vllm": ("lrsa serve", f"{_OURS.format('serve')}, or [serve-cpu], in an environment of its own"),
    "wandb": ("Weights & Biases", "pip install wandb"),
    "tensorboard": ("TensorBoardLogger", "pip install tensorboard"),
    "mlflow": ("MLFlowLogger", "pip install mlflow"),
    "shtab": ("lrsa completion", "pip install shtab"),
}
_NEEDED = ("torch", "lightning", "transformers", "jsonargparse", "peft")
_PLUGIN = "plug-in of vLLM"


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(_distribution(package))
    except PackageNotFoundError:
        return None


def advice(package: str) -> str:
    """What a package is for, and how to install it."""
    purpose, how = _PACKAGES[package]
    return f"{package}, for {purpose}: {how}"


def packages() -> dict[str, str]:
    """Each optional package, and the plug-in with which vLLM runs folders that name a rule."""
    return {name: _described(name) for name in _PACKAGES} | {_PLUGIN: _plugin()}


def untested() -> list[str]:
    """The packages whose versions are outside the tested ranges, and how to install one within."""
    hows = {name: how for name, (_, how) in _PACKAGES.items()} | dict.fromkeys(_NEEDED, "pip install -U lrsa-lightning")
    return [
        f"{name} {installed(name)} is outside the tested range {_range(name)}: {how}"
        for name, how in hows.items()
        if not _is_tested(name)
    ]


def _described(name: str) -> str:
    found, (purpose, how) = installed(name), _PACKAGES[name]
    if found is None:
        return f"not installed, for {purpose}: {how}"
    where = "within" if _is_tested(name) else "OUTSIDE"
    return f"{found}{f' ({where} the tested range {_range(name)})' if _range(name) else ''}, for {purpose}"


def _is_tested(name: str) -> bool:
    found = installed(name)
    return found is None or _range(name).contains(found, prereleases=True)


def _range(name: str) -> SpecifierSet:
    """The versions that this package's own metadata allow; without an end where they name none."""
    return _ranges().get(_distribution(name), SpecifierSet())


@cache
def _ranges() -> dict[str, SpecifierSet]:
    found: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, requires("lrsa-lightning") or ()):
        found[requirement.name] = found.get(requirement.name, SpecifierSet()) & requirement.specifier
    return found


def _distribution(name: str) -> str:
    """The name under which a package is installed: vLLM has repackagings for CPUs."""
    names = packages_distributions().get("vllm", []) if name == "vllm" else []
    return name if not names or name in names else names[0]


def _plugin() -> str:
    try:
        check_plugin()
    except InputError as fault:
        return str(fault)
    return "registered, for folders with a rule in vLLM"
