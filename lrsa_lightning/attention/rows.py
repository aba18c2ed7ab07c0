"""What transformers' masks say about rows: where packed samples begin, and what is no causal mask at all.

To look at a mask or at positions is to wait for the device. A caller who knows the rows gives `mask_of_known_rows`, and
nothing looks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lrsa_lightning.attention.packing import boundaries_from_starts
from lrsa_lightning.attention.token_counts import consecutive_columns
from lrsa_lightning.errors import InputError

OWN_CACHE = (
    "LRSA fills a cache of its own: leave past_key_values and cache_implementation out, or give an empty DynamicCache, "
    "or mode.make_cache(model.config)"
)


def mask_of_known_rows(device: torch.device) -> Tensor:
    """What a model's forward takes as attention mask where its caller knows the rows.

    It stands for causal rows of one sample each, padded on the right if at all, or of the samples that ``cu_seqlens``
    says. transformers returns a mask of four dimensions as it is ("already prepared"), for every architecture that
    makes its masks by `masking_utils`. So it does not search the positions for packed rows. The positions are to be
    given: some architectures would count them from the mask.

    Returns:
        bool [1, 1, 0, 0]: a mask of a user's own has elements.
    """
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def says_rows_are_known(mask: Any) -> bool:
    """Whether it is a `mask_of_known_rows`."""
    return isinstance(mask, Tensor) and mask.ndim == 4 and mask.numel() == 0


@dataclass(frozen=True)
class Rows:
    """What the mask of a forward says about its rows.

    Attributes:
        boundaries: of the samples in each packed row; None where no row is known to hold more than one.
        is_causal: whether tokens see exactly their own sample up to themselves.
    """

    boundaries: list[list[int]] | None = None
    is_causal: bool = True


@dataclass(frozen=True)
class RowMask:
    """What each attention layer gets instead of a mask. It examines the mask only where a layer needs to know.

    Attributes:
        mask_function: transformers' function, for what deviates from a causal mask; None for a causal mask.
        is_foreign: the model or the user has added a function of its own.
        examined: transformers has looked for packed rows, unless a cache is in use.
        begins_BN: True at each token but the first whose row begins with it, after padding; None for no such row.
        batch: number of rows.
        first, stop: the queries are the tokens first .. stop - 1.
        device: of the tokens.
        arguments: all that transformers said of the mask.
    """

    mask_function: Callable | None = None
    is_foreign: bool = False
    examined: bool = False
    begins_BN: Tensor | None = None
    batch: int = 1
    first: int = 0
    stop: int = 0
    device: torch.device | None = None
    arguments: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    _made: dict[str, Tensor | None] = field(default_factory=dict, compare=False, repr=False)

    def contiguous(self) -> NoReturn:
        """What `generate` does with a mask for a cache of fixed size.

        Raises:
            InputError: always.
        """
        raise InputError(f"LRSA was given a cache of fixed size (StaticCache). {OWN_CACHE}")

    @cached_property
    def rows(self) -> Rows:
        """Found once for all layers; waits for the device where the mask is not causal, or a row is padded in front."""
        if self.mask_function is None or self.is_foreign:
            # Padding in front of a row is a sample of its own: no token sees it.
            padded = None if self.begins_BN is None else boundaries_from_starts(self.begins_BN)
            return Rows(padded, is_causal=not self.is_foreign)
        begins_BN, is_causal = _deviations(self.mask_function, self.batch, self.first, self.stop, self.device)
        if not bool(is_causal):
            return Rows(is_causal=False)
        if self.begins_BN is not None and self.begins_BN.shape == begins_BN.shape:
            begins_BN = begins_BN | self.begins_BN
        return Rows(boundaries_from_starts(begins_BN))

    def made_by(self, implementation: str) -> Tensor | None:
        """The mask that an implementation of transformers has: what a layer gets that LRSA does not replace."""
        if implementation not in self._made:
            self._made[implementation] = _their_mask(implementation, self.arguments)
        return self._made[implementation]


class TracedRows(NamedTuple):
    """What stands for a `RowMask` while `torch.compile` traces: it has no values to look at.

    Attributes:
        begins_BN: where samples begin, bool [B or 1, N - 1]; None where nothing says that any does.
        is_causal: bool, whether tokens see their own sample up to themselves; None for yes.
        arguments: all that transformers said of the mask.
    """

    begins_BN: Tensor | None
    is_causal: Tensor | None
    arguments: dict[str, Any]

    def made_by(self, implementation: str) -> Tensor | None:
        """As of `RowMask`."""
        return _their_mask(implementation, self.arguments)


def _their_mask(implementation: str, arguments: dict[str, Any]) -> Tensor | None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](**arguments)


def _deviations(mask_function: Callable, batch: int, first: int, stop: int, device) -> tuple[Tensor, Tensor]:
    """Where samples begin, bool [B, N - 1], and whether tokens see their own sample up to themselves, bool."""
    token = torch.arange(max(1, first), stop, device=device)
    row = torch.arange(batch, device=device)[:, None]
    begins_BN = ~mask_function(row, 0, token, token - 1).expand(batch, -1)
    sample_BN = torch.where(begins_BN, token, 0).cummax(dim=1).values
    sees_sample = mask_function(row, 0, token, sample_BN)
    return begins_BN, (sees_sample & ~mask_function(row, 0, token - 1, token)).all()


def find_rows(**asked: Any) -> RowMask | TracedRows:
    """Mask registration: the rule needs no mask. It only needs to know where the samples of packed rows begin.

    transformers finds packed rows by positions that restart. ``mask_function`` says so, as it says everything that
    deviates from a causal mask. Padding is exact on either side. Older versions of transformers give the
    positions of the queries as ``cache_position``.

    Raises:
        InputError: padding separates tokens of a row.
    """
    if torch.compiler.is_compiling():
        return _traced(**asked)
    return replace(_row_mask(**asked), arguments=asked)


def _traced(**asked: Any) -> TracedRows:
    from transformers.masking_utils import causal_mask_function

    mask_BN, mask_function, begins_BN, is_causal = asked.get("attention_mask"), asked["mask_function"], None, None
    if asked.get("use_vmap"):  # a function of the model or the user, that looks at single elements
        is_causal = torch.zeros((), dtype=torch.bool)
    elif mask_function is not causal_mask_function:
        length = asked.get("q_length") or asked["kv_length"]
        tokens = asked.get("cache_position")  # of older versions of transformers, which give no device
        device = asked["device"] if tokens is None else tokens.device
        begins_BN, is_causal = _deviations(mask_function, asked["batch_size"], 0, length, device)
    if mask_BN is not None:
        padded_BN = (mask_BN[:, 1:] != 0) & (mask_BN[:, :-1] == 0)
        begins_BN = padded_BN if begins_BN is None else begins_BN | padded_BN
    return TracedRows(begins_BN, is_causal, asked)


def _row_mask(
    *, mask_function: Callable, kv_length: int, batch_size: int, attention_mask: Tensor | None = None,
    q_length: int | None = None, q_offset: int = 0, cache_position: Tensor | None = None,
    device: torch.device | None = None, use_vmap: bool = False, **_,
) -> RowMask:  # fmt: skip
    from transformers.masking_utils import causal_mask_function

    begins_BN = None if attention_mask is None else _begins_after_padding(attention_mask)
    if mask_function is causal_mask_function:
        return RowMask(examined=attention_mask is None, begins_BN=begins_BN)
    if cache_position is not None:
        q_offset, q_length, device = int(cache_position[0]), len(cache_position), cache_position.device
    stop = q_offset + (kv_length if q_length is None else q_length)
    # transformers maps a function of the model or the user over single elements.
    return RowMask(mask_function, use_vmap, True, begins_BN, batch_size, int(q_offset), int(stop), device)


def _begins_after_padding(mask_BN: Tensor) -> Tensor | None:
    """Where rows begin that are padded in front, bool [B, N - 1]; None where each row begins with a token.

    Raises:
        InputError: padding separates tokens of a row.
    """
    real_BN = mask_BN != 0
    begins_BN = real_BN[:, 1:] & ~real_BN[:, :-1]
    if bool(real_BN[:, 0].all() & ~begins_BN.any()):
        return None
    consecutive_columns(real_BN)
    return begins_BN


def boundaries_found(mask: Any, module, position_ids: Tensor | None, use_cache: bool | None, num_queries: int):
    """Boundaries of the samples in each row, or None, for callers that do not give ``cu_seqlens``.

    Args:
        mask: what `find_rows` returned, or a `mask_of_known_rows`; None where the layer is called without a model
            around it.
        module: the attention layer.
        position_ids: int64 [B or 1, n] of its queries, if the model passes them on.
        use_cache: argument of the model's forward.
        num_queries: n.

    Raises:
        InputError: the mask is not causal, or positions restart where transformers does not look for packed rows.
    """
    if says_rows_are_known(mask):
        return None
    if isinstance(mask, TracedRows):  # where a graph ended before this layer: with a cache in use
        check_causal(mask.is_causal is None or bool(mask.is_causal), module.layer_idx)
        return None if mask.begins_BN is None else boundaries_from_starts(mask.begins_BN)
    if mask is not None and not isinstance(mask, RowMask):
        refuse_mask(mask, module.layer_idx)
    if mask is not None:
        check_causal(mask.rows.is_causal, module.layer_idx)
    is_padded = mask is not None and mask.begins_BN is not None
    if is_padded or (mask is not None and (mask.rows.boundaries or (mask.examined and use_cache is False))):
        return mask.rows.boundaries
    if module.layer_idx == 0 and num_queries > 1:
        check_positions(position_ids, num_queries)
    return None


def refuse_mask(mask: Any, layer_idx: int) -> NoReturn:
    """Raises the InputError for a mask that transformers did not get from `find_rows`."""
    raise InputError(
        f"LRSA makes its own mask, but layer {layer_idx} was given one ({type(mask).__name__}): "
        "pass attention_mask as [B, N] of zeros and ones, or None"
    )


def check_causal(is_causal: bool, layer_idx: int) -> None:
    """Raises InputError if tokens do not see their own sample up to themselves."""
    if not is_causal:
        raise InputError(
            f"LRSA replaces full causal attention, but layer {layer_idx} is masked otherwise: "
            "a sliding window or chunks within reach, or a mask that lets tokens see later ones"
        )


def check_traced(
    causal: Tensor | None, positions: Tensor | None, begins_BN: Tensor | None, num_queries: int, layer_idx: int
) -> None:
    """Refuses in an operator what `boundaries_found` refuses in eager, once there are values to look at.

    Args:
        causal: bool, whether tokens see their own sample up to themselves; None for yes.
        positions: of the queries, int64 [B or 1, n]; None where no layer is to look at them.
        begins_BN: where samples begin, as of `TracedRows`.
        num_queries: n.
        layer_idx: the decoder layer.

    Raises:
        InputError: the mask is not causal, or positions restart where nothing says that a sample begins.
    """
    check_causal(causal is None or bool(causal), layer_idx)
    if positions is not None and num_queries > 1 and (begins_BN is None or not bool(begins_BN.any())):
        check_positions(positions, num_queries)


def check_positions(position_ids: Tensor | None, num_queries: int) -> None:
    """Refuses positions of packed rows without boundaries; positions of another number of tokens are not checked."""
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != num_queries:
        return
    if bool((position_ids.diff(dim=1) != 1).any()):
        raise InputError(
            "LRSA: position_ids do not rise by one. For packed rows give cu_seqlens; without it they keep their "
            "boundaries only without attention_mask and with use_cache=False. Padded rows need no position_ids of "
            "their own"
        )
