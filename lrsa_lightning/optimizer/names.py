"""Optimizers by name: which library has one, and how many numbers it keeps for each weight."""

from dataclasses import dataclass
from importlib import import_module

import torch

from lrsa_lightning.errors import InputError, suggestion

_EXTRA = "pip install 'lrsa-lightning[optimizers]'"
_PACKAGES = {"torch": "torch.optim", "bitsandbytes": "bitsandbytes.optim", "torchao": "torchao.optim"}
# Tensors as large as the weight, by the name without paging and bits. Adafactor keeps a row and a column.
_STATES = {
    **dict.fromkeys(("sgd", "adafactor"), 0),
    **dict.fromkeys(("adagrad", "asgd", "lars", "lion", "rmsprop"), 1),
    **dict.fromkeys(("adadelta", "adam", "adamax", "adamw", "lamb", "nadam", "radam"), 2),
    "ademamix": 3,
}
# Not LBFGS, SparseAdam, Muon and Rprop: they need closures, sparse gradients, matrices alone, complete batches.
_OF_TORCH = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "sgd"),
)
_PAGED = ("adam", "adamw", "ademamix", "lion")
_OF_BITSANDBYTES = (*_PAGED, "adagrad", "lamb", "lars", "rmsprop", "sgd")
_OF_TORCHAO = tuple(f"{base}{kind}" for base in ("adam", "adamw") for kind in ("8bit", "4bit", "fp8"))
# Bytes of a number in torchao's and bitsandbytes' states: a code, and a float32 scale for each block.
_BYTES = {"8bit": 1 + 4 / 256, "fp8": 1 + 4 / 256, "4bit": 0.5 + 4 / 128, "32bit": 4.0}
_LEAST_QUANTISED = 4096  # numbers; both libraries keep the states of smaller weights in full


@dataclass(frozen=True)
class OptimizerName:
    """A name that was found.

    Attributes:
        library: torch, bitsandbytes or torchao.
        name: of the class, in lower case.
    """

    library: str
    name: str

    @classmethod
    def of(cls, given: str) -> "OptimizerName":
        """
        Args:
            given: the class's name, with or without its library, in any case and with any underscores. A name alone is
                that of torch, else of bitsandbytes, else of torchao.

        Raises:
            InputError: no library has the name.
        """
        library, _, own = given.replace("_", "").replace("-", "").lower().rpartition(".")
        library = {"bnb": "bitsandbytes", "torch.optim": "torch"}.get(library, library)
        for known, names in _NAMES.items():
            if library in ("", known) and own in names:
                return cls(known, own)
        every = [name for names in _NAMES.values() for name in names]
        raise InputError(
            f"model.optimizer.name is {given!r}, but must be an optimizer of torch (adamw, sgd, ...), bitsandbytes "
            f"(adamw8bit, paged_adamw8bit, lion8bit, ...) or torchao (torchao.adamw8bit, adamw4bit, adamwfp8)"
            f"{suggestion(own, every)}"
        )

    @property
    def is_paged(self) -> bool:
        return self.name.startswith("paged")

    @property
    def bits(self) -> str:
        """8bit, 4bit, fp8 or 32bit; empty where the states have the dtype of the weights."""
        found = next((kind for kind in _BYTES if self.name.endswith(kind)), "")
        return found or ("32bit" if self.library == "bitsandbytes" else "")

    @property
    def has_fused_kernel(self) -> bool:
        """Whether torch has one kernel for all weights."""
        return self.library == "torch" and self.name in ("adagrad", "adam", "adamw", "sgd")

    @property
    def base(self) -> str:
        """The name without paging and bits."""
        return self.name.removeprefix("paged").removesuffix(self.bits)

    def find(self) -> type[torch.optim.Optimizer]:
        """The class.

        Raises:
            InputError: the library is not installed, or its version does not have the class.
        """
        try:
            module = import_module(_PACKAGES[self.library])
        except ImportError as error:
            raise InputError(
                f"model.optimizer.name {self.name} needs {self.library}, which cannot be imported ({error}): {_EXTRA}"
            ) from error
        classes = {name.lower(): kind for name, kind in vars(module).items() if isinstance(kind, type)}
        if self.name not in classes:
            raise InputError(f"this version of {self.library} has no {self.name}: {_EXTRA} -U")
        return classes[self.name]

    def state_bytes(self, args: dict, numel: int, element: int) -> float:
        """Bytes of the states of one weight, without counters.

        Args:
            args: of the class.
            numel: numbers of the weight.
            element: bytes of a number of the weight.
        """
        return self._tensors(args) * numel * self._bytes_of_a_number(numel, element)

    def _tensors(self, args: dict) -> int:
        return _STATES[self.base] + sum(bool(args.get(name)) for name in ("momentum", "amsgrad", "centered"))

    def _bytes_of_a_number(self, numel: int, element: int) -> float:
        if not self.bits:
            return element
        if numel < _LEAST_QUANTISED:
            return 4.0 if self.library == "bitsandbytes" else element
        return _BYTES[self.bits]


def _of_bitsandbytes() -> list[str]:
    """The classes with their bits and paging. Without bits, bitsandbytes keeps 32."""
    plain = [f"{base}{bits}" for base in _OF_BITSANDBYTES for bits in ("", "8bit", "32bit")]
    return [*plain, *(f"paged{base}{bits}" for base in _PAGED for bits in ("", "8bit", "32bit"))]


_NAMES = {"torch": _OF_TORCH, "bitsandbytes": _of_bitsandbytes(), "torchao": _OF_TORCHAO}
