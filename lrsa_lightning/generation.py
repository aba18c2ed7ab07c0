"""Greedy generation under any attention mode: chunked prefill through the mode's cache, then decoding.

Shape suffixes: B batch, N prompt tokens, n those of a piece, T new tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.hybrid import check_padded_states, counts_columns
from lrsa_lightning.attention.token_counts import consecutive_columns
from lrsa_lightning.decoding import DecodingStep, mask_of_next
from lrsa_lightning.errors import InputError

# To look whether all rows have ended is to wait for the device.
_STEPS_AHEAD = 8
# Steps of all rows that a GPU makes while the host prepares one row of several tokens (H200, 30 layers: 4 and 11 ms).
_STEPS_OF_A_ROW = 2


@torch.no_grad()
def generate(
    model,
    input_ids: Tensor,
    mode,
    max_new_tokens: int = 64,
    *,
    lengths: Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    prefill_chunk_size: int = 4096,
) -> Tensor:
    """Greedy continuation of padded prompts; exact for rows of unequal length.

    Args:
        model: a transformers causal decoder. Its installed mode is the same again afterwards.
        input_ids: int64 [B, N], padded on the right, or as ``attention_mask`` says.
        mode: the attention mode to generate with, and whose cache is filled.
        max_new_tokens: upper limit of T.
        lengths: true length of each row; N when None.
        eos_token_id: one or more ids that end a row; the model's generation config when None.
        attention_mask: instead of lengths, [B, N] of ones at the prompts' tokens: padding on the left or on the right.
        prefill_chunk_size: prompt tokens a forward pass; speed and memory only, never the result.

    Returns:
        int64 [B, T], the new tokens only; after its end token a row repeats that token.

    Raises:
        InputError: a number outside its range, lengths or a mask that do not fit, a mode that cannot run the model.
    """
    _check_request(input_ids, mode, max_new_tokens, prefill_chunk_size)
    if attention_mask is not None:
        if lengths is not None:
            raise InputError("generate: give lengths or attention_mask, not both")
        input_ids, lengths = _padded_on_the_right(input_ids, attention_mask)
    lengths = _checked(lengths, input_ids)
    mode = mode.for_length(max(lengths) + max_new_tokens)
    if eos_token_id is None:
        eos_token_id = model.generation_config.eos_token_id
    ends = [] if eos_token_id is None else torch.tensor(eos_token_id).flatten().tolist()
    prompt = Prompt(model, input_ids, lengths, mode, -(-max(lengths) // prefill_chunk_size))
    return prompt.decode(max_new_tokens, ends)


class Prompt:
    """A prefilled cache, and all that decoding needs besides.

    Attributes:
        cache: the mode's, holding the prompts, the shortest one first: rows of about one length are read together.
    """

    def __init__(self, model, input_ids: Tensor, lengths: Sequence[int], mode, num_pieces: int = 1):
        """
        Args:
            model: a transformers causal decoder. Its installed mode is the same again afterwards.
            input_ids: int64 [B, N], padded on the right.
            lengths: true length of each row.
            mode: the attention mode. `AttentionMode.for_length` says how long the rows may become; the storage of its
                cache is then made once.
            num_pieces: forward passes of the prefill.
        """
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        self._order_B = torch.tensor(order, device=input_ids.device)
        input_ids, lengths = input_ids[self._order_B, : max(lengths)], [lengths[row] for row in order]
        self._model, self._mode = model, mode.for_generation(model.config)
        self._positions_B1 = torch.tensor(lengths, device=input_ids.device).unsqueeze(-1)
        self._mask_BN, self._is_unequal = None, len(set(lengths)) > 1
        on_the_left = self._is_unequal and counts_columns(model.config.get_text_config(decoder=True))
        if on_the_left or (self._is_unequal and self._mode.needs_padding_mask):
            self._mask_BN = torch.arange(input_ids.shape[1], device=input_ids.device) < self._positions_B1
        if on_the_left:
            check_padded_states(model.config.get_text_config(decoder=True))
            input_ids, self._mask_BN = _padded_on_the_left(input_ids, self._mask_BN)
            lengths = [input_ids.shape[1]] * len(lengths)
        self.cache = self._mode.make_cache(model.config, lengths)
        with self._mode.installed(model):
            self._next_B = self._prefill(input_ids, lengths, num_pieces)
        self._step = DecodingStep(model, self.cache, self._positions_B1, self._mask_BN)

    def _prefill(self, input_ids: Tensor, lengths: Sequence[int], num_pieces: int) -> Tensor:
        left_BN = None if self._mask_BN is None or bool(self._mask_BN[:, 0].all()) else self._mask_BN
        pieces = prefill(self._model, self.cache, input_ids, num_pieces, mask_BN=left_BN)
        self._last_BD = torch.cat(hidden_states(pieces, [(length - 1, length) for length in lengths]))
        return self._model.get_output_embeddings()(self._last_BD).argmax(dim=-1)

    def hidden_before(self, ids_Bn: Tensor) -> Tensor:
        """The last hidden states [B, n, D] from which a model predicts the given next tokens of each row.

        The tokens go through a copy of the cache in one forward pass, or, on a GPU, one by one where many rows of
        unequal length would take the host longer. The prompt stays as it is, ready to decode.
        """
        ids_Bn = ids_Bn[self._order_B]
        hidden_BnD = self._hidden_by_steps(ids_Bn) if self._prefers_steps(ids_Bn) else self._hidden_at_once(ids_Bn)
        return hidden_BnD[self._order_B.argsort()]

    def _prefers_steps(self, ids_Bn: Tensor) -> bool:
        num_rows, num_tokens = ids_Bn.shape
        is_slow_at_once = self._is_unequal and num_tokens <= _STEPS_OF_A_ROW * num_rows
        return is_slow_at_once and self._step.can_replay and self.cache.has_room(num_tokens)

    def _hidden_by_steps(self, ids_Bn: Tensor) -> Tensor:
        hidden = [self._last_BD]
        with self._mode.installed(self._model), self._step.undone():
            for ids_B in ids_Bn[:, :-1].unbind(1):
                self._step(ids_B)
                hidden.append(self._step.hidden_BD.clone())
        return torch.stack(hidden, dim=1)

    def _hidden_at_once(self, ids_Bn: Tensor) -> Tensor:
        with self._mode.installed(self._model):
            hidden_BnD = self._model.get_decoder()(
                input_ids=ids_Bn,
                attention_mask=mask_of_next(self.cache, self._mask_BN, ids_Bn),
                position_ids=self._positions_B1 + torch.arange(ids_Bn.shape[1], device=ids_Bn.device),
                past_key_values=deepcopy(self.cache),
                use_cache=True,
            ).last_hidden_state
        return torch.cat([self._last_BD.unsqueeze(1), hidden_BnD[:, :-1]], dim=1)

    def decode(self, max_new_tokens: int, ends: Sequence[int] = (), early_end: bool = True) -> Tensor:
        """Greedy continuation, int64 [B, T]; once only.

        Args:
            max_new_tokens: upper limit of T.
            ends: token ids that end a row, which then repeats its own.
            early_end: stop when all rows have ended. Processes that must make the same number of forward passes
                go on to the limit.
        """
        end_ids = torch.tensor(ends, dtype=torch.int64, device=self._next_B.device)
        token_B = self._next_B
        tokens, ended_B = [], torch.zeros_like(token_B, dtype=torch.bool)
        look_every = 1 if token_B.device.type == "cpu" else _STEPS_AHEAD
        with self._mode.installed(self._model):
            for step in range(max_new_tokens):
                if step:
                    token_B = torch.where(ended_B, token_B, self._step(token_B).argmax(dim=-1))
                tokens.append(token_B)
                ended_B |= torch.isin(token_B, end_ids)
                if early_end and step % look_every == look_every - 1 and bool(ended_B.all()):
                    break
        tokens_BT = torch.stack(tokens, dim=1)[self._order_B.argsort()]
        return _until_all_ended(tokens_BT, end_ids) if early_end else tokens_BT


def _until_all_ended(tokens_BT: Tensor, end_ids: Tensor) -> Tensor:
    """The tokens without the steps after the one at which the last row ended."""
    ended_BT = torch.isin(tokens_BT, end_ids).cumsum(dim=1) > 0
    num_steps = int((~ended_BT.all(dim=0)).sum()) + 1
    return tokens_BT[:, :num_steps]


def prefill(
    model, cache, input_ids: Tensor, num_pieces: int, start: int = 0, mask_BN: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Feeds padded prompts to a cache in so many forward passes.

    Padding on the right needs no mask: it is seen by padding alone.

    Args:
        model: a transformers causal decoder with the cache's mode installed.
        cache: the mode's.
        input_ids: int64 [B, N].
        num_pieces: forward passes.
        start: tokens that the cache has seen.
        mask_BN: True at the tokens of prompts that are padded on the left; ``start`` is 0 then.

    Yields:
        position of each piece's first token, and its last hidden states [B, n, D].
    """
    for piece in input_ids.tensor_split(num_pieces, dim=1):
        stop = start + piece.shape[1]
        known = {"position_ids": torch.arange(start, stop, device=piece.device).unsqueeze(0)}
        if mask_BN is not None:
            positions_BN = (mask_BN.cumsum(dim=1) - 1).clamp(min=0)
            known = {"position_ids": positions_BN[:, start:stop], "attention_mask": mask_BN[:, :stop].long()}
        out = model.get_decoder()(input_ids=piece, past_key_values=cache, use_cache=True, **known)
        yield start, out.last_hidden_state
        start = stop


def hidden_states(pieces: Iterator[tuple[int, Tensor]], spans: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Of each row the hidden states from one position to another, [stop - start, D], out of what `prefill` yields."""
    found = [[] for _ in spans]
    for first, hidden_BnD in pieces:
        for row, (start, stop) in enumerate(spans):
            # A copy: a view would hold the whole piece.
            found[row].append(hidden_BnD[row, max(0, start - first) : max(0, stop - first)].clone())
    return [torch.cat(parts) for parts in found]


def _check_request(input_ids: Tensor, mode, max_new_tokens: int, prefill_chunk_size: int) -> None:
    if not isinstance(mode, AttentionMode):
        raise InputError(f"generate: mode must be an attention mode such as Vanilla() or LRSA(), got {mode!r}")
    for name, number in {"max_new_tokens": max_new_tokens, "prefill_chunk_size": prefill_chunk_size}.items():
        if number < 1:
            raise InputError(f"generate: {name} must be at least 1, got {number}")
    if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
        shape = f"{input_ids.dtype} {list(input_ids.shape)}"
        raise InputError(f"generate: input_ids must be token ids [rows, tokens], got {shape}")


def _padded_on_the_right(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[int]]:
    """The prompts, each row rolled so that it begins with its first token, and their lengths."""
    if attention_mask.shape != input_ids.shape:
        shapes = f"{list(attention_mask.shape)} and {list(input_ids.shape)}"
        raise InputError(f"generate: attention_mask and input_ids must have one shape, got {shapes}")
    real_BN = attention_mask.to(input_ids.device) != 0
    first_B, count_B = consecutive_columns(real_BN)
    place_BN = (torch.arange(input_ids.shape[1], device=input_ids.device) + first_B[:, None]) % input_ids.shape[1]
    return input_ids.gather(1, place_BN), count_B.tolist()


def _padded_on_the_left(input_ids: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts, each row rolled so that it ends with its last token, and where their tokens are."""
    columns, count_B1 = torch.arange(input_ids.shape[1], device=input_ids.device), mask_BN.sum(dim=1, keepdim=True)
    return input_ids.gather(1, (columns + count_B1) % input_ids.shape[1]), mask_BN.flip(1)


def _checked(lengths: Sequence[int] | None, input_ids: Tensor) -> list[int]:
    batch, width = input_ids.shape
    lengths = [width] * batch if lengths is None else torch.as_tensor(lengths).flatten().tolist()
    if len(lengths) != batch or not all(isinstance(n, int) and 1 <= n <= width for n in lengths):
        raise InputError(f"generate: lengths must hold {batch} numbers in 1..{width}, got {lengths}")
    return lengths
