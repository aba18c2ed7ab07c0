"""One new token a row through the model: on a GPU a CUDA graph, which waits for no Python.

Shape suffixes: B batch, N tokens so far, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from lrsa_lightning.attention.cache import LagKVCache
from lrsa_lightning.attention.rows import mask_of_known_rows


class DecodingStep:
    """Feeds one token a row to a prefilled cache; greedy or not, the caller chooses from the logits.

    The first call runs the model as it is, which compiles kernels. The second one captures a CUDA graph of the same
    work; it and later calls replay it. A graph belongs to the storage of the cache: where that has to grow, the next
    call runs the model as it is, and the call after it captures anew. Elsewhere than on one GPU, and with caches whose
    steps the host decides on, every call runs the model as it is. The results are equal.

    Attributes:
        can_replay: whether steps may be replayed from a graph.
        uses_graph: whether the last call replayed a graph.
        hidden_BD: the model's last hidden states of the last call; valid until the next one.
    """

    def __init__(self, model, cache, positions_B1: Tensor, padding_mask_BN: Tensor | None = None):
        """
        Args:
            model: a transformers causal decoder; the cache's mode stays installed in it.
            cache: holds the prompts.
            positions_B1: int64, position of the first token that will be fed.
            padding_mask_BN: True at the tokens of the prompts, for caches that do not know their rows.
        """
        self._model, self._cache = model, cache
        self._positions_B1 = positions_B1.clone()
        self._token_B1 = torch.zeros_like(positions_B1)
        self._padding_mask_BN = padding_mask_BN
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BV: Tensor | None = None
        self.hidden_BD: Tensor | None = None
        self.can_replay = _is_complete_on_a_gpu(model) and isinstance(cache, LagKVCache)
        self._is_warm = False

    @property
    def uses_graph(self) -> bool:
        return self._graph is not None

    @torch.no_grad()
    def __call__(self, token_B: Tensor) -> Tensor:
        """Feeds the next token of each row, int64 [B].

        Returns:
            logits of the token after it, [B, V], in the dtype of the model's head; valid until the next call.
        """
        self._token_B1.copy_(token_B.unsqueeze(-1))
        if not (self.can_replay and self._cache.has_room(1)):
            self._graph, self._is_warm = None, self.can_replay
            return self._forward()
        if self._graph is not None:
            self._graph.replay()
            self._cache.counts.replayed()
            return self._logits_BV
        if not (self._is_warm and self._cache.runs_by_kernels()):
            self._is_warm = True
            return self._forward()
        self._capture()
        return self._logits_BV

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Takes back the steps made within it, from a `LagKVCache` that has room for them; a graph stays valid."""
        saved = deepcopy(self._cache)
        positions_B1, mask_BN = self._positions_B1.clone(), self._padding_mask_BN
        yield
        self._cache.put_back(saved)
        self._positions_B1.copy_(positions_B1)
        self._padding_mask_BN = mask_BN

    def _capture(self) -> None:
        """Records a step, which counts its tokens on the host without running, and runs it once."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on: the one that writes a checkpoint copies from the device.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits_BV = self._forward()
        graph.replay()
        self._graph = graph

    def _forward(self) -> Tensor:
        mask = mask_of_next(self._cache, self._padding_mask_BN, self._token_B1)
        if self._padding_mask_BN is not None:
            self._padding_mask_BN = mask
        hidden_B1D = self._model.get_decoder()(
            input_ids=self._token_B1,
            attention_mask=mask,
            position_ids=self._positions_B1,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._positions_B1 += 1
        self.hidden_BD = hidden_B1D[:, -1]
        return self._model.get_output_embeddings()(self.hidden_BD)


def mask_of_next(cache, mask_BN: Tensor | None, tokens_Bn: Tensor) -> Tensor | None:
    """The attention mask of a forward that adds n tokens to each row.

    Args:
        cache: a `LagKVCache`, which knows its rows, or another one.
        mask_BN: True at the tokens so far; None where rows are equally long, or where the cache knows them.
        tokens_Bn: the new ones.

    Returns:
        [B, N + n]; without a mask so far None, or for a `LagKVCache` what says that nothing needs to look at the rows.
    """
    if isinstance(cache, LagKVCache) and mask_BN is None:
        return mask_of_known_rows(tokens_Bn.device)
    return None if mask_BN is None else torch.nn.functional.pad(mask_BN, (0, tokens_Bn.shape[1]), value=True)


def _is_complete_on_a_gpu(model) -> bool:
    """Whether one GPU holds all weights: a graph with the collectives of sharded ones is another matter."""
    from torch.distributed.tensor import DTensor

    # ZeRO-3 leaves parameters without elements.
    return all(p.is_cuda and p.numel() > 0 and not isinstance(p, DTensor) for p in model.parameters())
