"""What an attention mode is: something that installs itself in a loaded transformers model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.layout import causal_pairs
from lrsa_lightning.attention.packing import CuSeqlens
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.errors import InputError
from lrsa_lightning.saved_settings import save_settings, saved_settings, say_other, set_aside

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig, PreTrainedModel


class AttentionMode(ABC):
    """A swappable attention. Its subclasses are the registry: import one and YAML can name it.

    A mode binds to a model, not to the process: two models in one process can run two modes.
    """

    needs_padding_mask = True
    """Whether `generate` must pass a mask for rows of unequal length; False where the cache knows them."""

    prefers_context_parallel = False
    """Whether ranks that may choose use context parallelism rather than Ulysses."""

    needs_total_steps = False
    """Whether the mode of a step depends on how many steps the run has."""

    execution: Execution = Execution()
    """How context parallelism computes the mode's rule."""

    not_in_key: ClassVar[frozenset[str]] = frozenset()
    """Attributes that make no other mode of it: modes that differ in them alone have one registry key."""

    def registry_key(self) -> str:
        """Name of this very mode, arguments included, in transformers' `AttentionInterface`.

        Two modes have the same key if their class and all of their attributes are the same. The key is in capitals,
        since names with flash, sdpa or flex in them mean something to transformers.
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

    def settings(self) -> dict[str, Any] | None:
        """What config.json keeps of the mode, as plain values; None, the default, for nothing."""
        return None

    def check(self, config: "PreTrainedConfig") -> None:  # noqa: B027  a mode without limits need not override it
        """Raises InputError, with the reason, for a model this mode cannot be exact for."""

    def visible_pairs(self, num_tokens: int, layer_idx: int | None = None) -> int:
        """Query-key pairs that a layer attends over in a sequence; those of full causal attention by default.

        The throughput counts the floating-point operations of the attention by them.
        """
        return causal_pairs(num_tokens)

    def begin_step(self, step: int, total_steps: float, seed: int) -> "AttentionMode":
        """Lets the installed attention be that of an optimizer step, until `end_step`.

        Called before each micro-batch of the step. The default has one attention for all steps.

        Args:
            step: its number, from 0.
            total_steps: of the run; infinity where only a time or a signal ends it.
            seed: of the run.

        Returns:
            The mode of this step alone, which stays as it is in later steps.
        """
        return self

    def end_step(self) -> None:  # noqa: B027  nothing to do where all steps have one attention
        """Lets the installed attention be that outside of steps: of a validation and of generation.

        Called after the backward of each micro-batch.
        """

    def step_metrics(self) -> dict[str, float]:
        """What a mode that `begin_step` returned logs with its step, by name; nothing by default."""
        return {}

    def phases(self) -> "list[tuple[AttentionMode, float]]":
        """The modes that the steps of a run can have, each with the part of the steps that is expected to have it."""
        return [(self, 1.0)]

    def attention_function(self) -> Callable:
        """What transformers calls in each attention layer once the mode is installed: [B, H, N, D] to [B, N, H, D]."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        return ALL_ATTENTION_FUNCTIONS[self.registry_key()]

    def row_arguments(self, cu_seqlens: CuSeqlens | None, device: torch.device) -> dict[str, Any]:
        """Arguments of the decoder's forward in training, where it is known which samples are in each row.

        Rows are padded on the right, and their positions begin at 0 in each sample. The default leaves it to
        transformers to find packed rows by their positions.

        Args:
            cu_seqlens: boundaries of the samples in each packed row, from 0 to N; None for one sample a row.
            device: of the tokens.
        """
        return {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}

    def for_heads(self, first_kv_head: int) -> "AttentionMode":
        """The mode on a share of the heads, as Ulysses runs it; the mode itself where heads do not matter."""
        return self

    def for_length(self, num_tokens: int) -> "AttentionMode":
        """The mode for sequences of at most ``num_tokens``. It may then run models that only differ in longer ones.

        The default is the mode itself: the length does not matter.
        """
        return self

    def for_generation(self, config: "PreTrainedConfig") -> "AttentionMode":
        """The mode that `generate` runs in place of this one, with the same result up to rounding; itself by default.

        Args:
            config: the model's configuration.
        """
        return self

    def remark(self, num_tokens: int, num_layers: int) -> str | None:
        """What a user must know before a run of this length begins; None, the default, for nothing."""
        return None

    def context_rule(self, num_tokens: int, size: int, layer_idx: int | None = None) -> LagRule | None:
        """The rule whose chunks context parallelism distributes over ranks.

        Args:
            num_tokens: of the sequence.
            size: ranks of the group.
            layer_idx: a decoder layer. Its chunks are those of all layers; what they keep may differ.

        Returns:
            None, the default: the mode has no such rule, and only Ulysses can run it.
        """
        return None

    def install(self, model: "PreTrainedModel") -> None:
        """Swaps the attention of a loaded model in place. The model's configuration keeps the settings of the mode.

        Raises:
            InputError: the model has something this mode does not support.
        """
        self.check(model.config)
        settings = self.settings()
        if settings is None and saved_settings(model.config) is not None:
            say_other(model.config, repr(self))
        save_settings(model.config, settings)
        set_attention(model, self.registry_key())

    @contextmanager
    def installed(self, model: "PreTrainedModel") -> Iterator[None]:
        """Installs the mode for a `with` block and restores the earlier one after it."""
        earlier = text_decoder(model).config._attn_implementation
        with set_aside(model.config):
            self.install(model)
            try:
                yield
            finally:
                save_settings(model.config, None)
                set_attention(model, earlier)


def text_decoder(model: "PreTrainedModel") -> "PreTrainedModel":
    """The part of a model that attends over text: without its head, and without a vision tower beside it."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "set_attn_implementation") else model


def set_attention(model: "PreTrainedModel", name: str) -> None:
    """Sets the attention of the text decoder by its name in transformers; a vision tower keeps its own.

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
    """Text that differs where values do. It describes plain values by content and all others by identity."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_content, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_content(name)}: {_content(item)}' for name, item in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{id(type(value))} {_content(vars(value))}"
    if value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    return f"{type(value).__qualname__} at {id(value)}"
