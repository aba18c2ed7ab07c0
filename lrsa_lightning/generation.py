"""Greedy generation under any attention mode: chunked prefill through the mode's cache, then decoding.

Shape suffixes: B batch, N prompt tokens, T new tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def generate(
    model,
    input_ids: Tensor,
    mode,
    max_new_tokens: int = 64,
    *,
    lengths: Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    prefill_chunk_size: int = 4096,
) -> Tensor:
    """Greedy continuation of right-padded prompts; exact for rows of unequal length.

    Args:
        model: a transformers causal decoder. Its installed mode is the same again afterwards.
        input_ids: int64 [B, N], padded on the right.
        mode: the attention mode to generate with, and whose cache is filled.
        max_new_tokens: upper limit of T.
        lengths: true length of each row; N when None.
        eos_token_id: one or more ids that end a row; the model's generation config when None.
        prefill_chunk_size: prompt tokens a forward pass; speed and memory only, never the result.

    Returns:
        int64 [B, T], the new tokens only; after its end token a row repeats that token.

    Raises:
        ValueError: a length outside 1 .. N, or not one for each row.
    """
    batch, width = input_ids.shape
    lengths = [width] * batch if lengths is None else [int(n) for n in lengths]
    if len(lengths) != batch or not all(1 <= n <= width for n in lengths):
        raise ValueError(f"generate: lengths must hold {batch} numbers in 1..{width}, got {lengths}")
    if eos_token_id is None:
        eos_token_id = model.generation_config.eos_token_id
    ends = torch.tensor([] if eos_token_id is None else eos_token_id, device=input_ids.device).flatten()
    input_ids = input_ids[:, : max(lengths)]
    with mode.installed(model):
        return _decode(model, _Prompt(model, input_ids, lengths, mode, prefill_chunk_size), max_new_tokens, ends)


class _Prompt:
    """A prefilled cache, the next token of each row, and what the next forward pass needs besides."""

    def __init__(self, model, input_ids: Tensor, lengths: list[int], mode, prefill_chunk_size: int):
        self.positions_B1 = torch.tensor(lengths, device=input_ids.device).unsqueeze(-1)
        self.cache = mode.make_cache(model.config, lengths)
        unequal = len(set(lengths)) > 1
        self.padding_mask = None
        if unequal and mode.needs_padding_mask:
            self.padding_mask = torch.arange(input_ids.shape[1], device=input_ids.device) < self.positions_B1
        self.next_B = self._prefill(model, input_ids, lengths, prefill_chunk_size)

    def _prefill(self, model, input_ids: Tensor, lengths: list[int], chunk_size: int) -> Tensor:
        last_hidden = [None] * len(lengths)
        for start in range(0, input_ids.shape[1], chunk_size):
            piece = input_ids[:, start : start + chunk_size]
            hidden_BND = model.get_decoder()(
                input_ids=piece,
                attention_mask=None if self.padding_mask is None else self.padding_mask[:, : start + piece.shape[1]],
                position_ids=torch.arange(start, start + piece.shape[1], device=piece.device).unsqueeze(0),
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
            for row, length in enumerate(lengths):
                if start < length <= start + chunk_size:
                    last_hidden[row] = hidden_BND[row, length - 1 - start]
        return model.get_output_embeddings()(torch.stack(last_hidden)).argmax(dim=-1)

    def step(self, model, token_B: Tensor) -> Tensor:
        """Feeds one token a row; the next one."""
        if self.padding_mask is not None:
            self.padding_mask = torch.nn.functional.pad(self.padding_mask, (0, 1), value=True)
        hidden_B1D = model.get_decoder()(
            input_ids=token_B.unsqueeze(-1),
            attention_mask=self.padding_mask,
            position_ids=self.positions_B1,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.positions_B1 = self.positions_B1 + 1
        return model.get_output_embeddings()(hidden_B1D[:, -1]).argmax(dim=-1)


def _decode(model, prompt: _Prompt, max_new_tokens: int, ends: Tensor) -> Tensor:
    token_B = prompt.next_B
    tokens, ended_B = [], torch.zeros_like(token_B, dtype=torch.bool)
    for step in range(max_new_tokens):
        if step:
            token_B = torch.where(ended_B, token_B, prompt.step(model, token_B))
        tokens.append(token_B)
        ended_B |= torch.isin(token_B, ends)
        if bool(ended_B.all()):
            break
    return torch.stack(tokens, dim=1)
