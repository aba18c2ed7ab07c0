"""What an attention mode is: something that installs itself in a loaded transformers model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

    @abstractmethod
    def registry_key(self) -> str:
        """Name of this very mode, arguments included, in transformers' `AttentionInterface`."""

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
        model.set_attn_implementation(self.registry_key())

    @contextmanager
    def installed(self, model: "PreTrainedModel") -> Iterator[None]:
        """Installs the mode for the length of a `with` block and brings the earlier one back."""
        earlier = model.config._attn_implementation
        self.install(model)
        try:
            yield
        finally:
            model.set_attn_implementation(earlier)
