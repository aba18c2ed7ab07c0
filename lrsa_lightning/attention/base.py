"""What an attention mode is: something that installs itself in a loaded transformers model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from lrsa_lightning.errors import InputError
from lrsa_lightning.flops import causal_pairs

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

    from lrsa_lightning.attention.lrsa import LRSA


class AttentionMode(ABC):
    """A swappable attention. Its subclasses are the registry: import one and YAML can name it.

    A mode binds to a model, not to the process: two models in one process can run two modes.
    """

    needs_padding_mask = True
    """Whether `generate` must pass a mask for rows of unequal length; False where the cache knows them."""

    not_in_key: ClassVar[frozenset[str]] = frozenset()
    """Attributes that name no other mode, but where it runs: modes that differ in them alone share a registry key."""

    def registry_key(self) -> str:
        """Name of this very mode, arguments included, in transformers' `AttentionInterface`.

        It stands for the class, not for its name, which another may bear, and for all that the mode holds. In capitals:
        transformers gives names with flash, sdpa or flex in them a meaning.
        """
        held = {name: value for name, value in sorted(vars(self).items()) if name not in self.not_in_key}
        text = f"{id(type(self))} {_content(held)}"
        return f"{type(self).__name__.upper()}-{sha256(text.encode()).hexdigest()[:16].upper()}"

    @abstractmethod
    def make_cache(self, config: "PreTrainedConfig", lengths: Sequence[int] | None = None) -> "Cache":
        """An empty key-value cache under the rule the model is trained with.

        Args:
            config: the model's configuration.
            lengths: true prompt lengths of right-padded rows; None when all rows are equally long.
        """

    def check(self, config: "PreTrainedConfig") -> None:  # noqa: B027  a mode without limits need not override it
        """Raises InputError, with the reason, for a model this mode cannot be exact for."""

    def visible_pairs(self, num_tokens: int, layer_idx: int | None = None) -> int:
        """Query-key pairs a layer attends over in a sequence of ``num_tokens``; full causal attention's by default.

        The throughput counts the attention's floating-point operations by them.
        """
        return causal_pairs(num_tokens)

    def attention_function(self) -> Callable:
        """What transformers calls in each attention layer once the mode is installed: [B, H, N, D] to [B, N, H, D]."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        return ALL_ATTENTION_FUNCTIONS[self.registry_key()]

    def for_heads(self, first_kv_head: int) -> "AttentionMode":
        """The mode on a share of the heads, as Ulysses runs it; itself where heads do not matter."""
        return self

    def for_length(self, num_tokens: int) -> "AttentionMode":
        """The mode for sequences of at most ``num_tokens``: it may then run models that only differ beyond them.

        Itself, the default, where the length does not matter.
        """
        return self

    def remark(self, num_tokens: int, num_layers: int) -> str | None:
        """What a user must know before a run of this length begins; None, the default, when there is nothing."""
        return None

    def context_rule(self, num_tokens: int, size: int) -> "LRSA | None":
        """The chunked rule by which ``size`` ranks can share the keys of ``num_tokens`` tokens (context parallelism).

        None, the default: the mode follows no such rule, and only Ulysses can share its sequences.
        """
        return None

    def install(self, model: "PreTrainedModel") -> None:
        """Swaps the attention of a loaded model in place.

        Raises:
            InputError: the model has something this mode does not support.
        """
        self.check(model.config)
        set_attention(model, self.registry_key())

    @contextmanager
    def installed(self, model: "PreTrainedModel") -> Iterator[None]:
        """Installs the mode for the length of a `with` block and brings the earlier one back."""
        earlier = text_decoder(model).config._attn_implementation
        self.install(model)
        try:
            yield
        finally:
            set_attention(model, earlier)


def text_decoder(model: "PreTrainedModel") -> "PreTrainedModel":
    """The part of a model that attends over text: without its head, and without a vision tower beside it."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "set_attn_implementation") else model


def set_attention(model: "PreTrainedModel", name: str) -> None:
    """Lets the text decoder attend by what transformers knows under a name; a vision tower keeps its own.

    Raises:
        InputError: the model's attention cannot be set.
    """
    decoder = text_decoder(model)
    decoder.set_attn_implementation(name)
    if decoder.config._attn_implementation != name:
        raise InputError(
            f"{type(decoder).__name__} does not call its attention through transformers' AttentionInterface: "
            f"no other than {decoder.config._attn_implementation!r} can be installed in it"
        )


def _content(value: Any) -> str:
    """Text that differs where values do: of plain ones by content, of all others by identity."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_content, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_content(name)}: {_content(item)}' for name, item in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{id(type(value))} {_content(vars(value))}"
    if value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    return f"{type(value).__qualname__} at {id(value)}"
