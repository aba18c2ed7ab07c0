"""Blocks of [KV heads, places, keys and values], as the back ends on GPUs have them."""

from torch import Tensor


def read_paged(cache_BGPE: Tensor, blocks_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [R, G, C * P, D] of blocks.

    Args:
        cache_BGPE: B blocks of G KV heads, P places, and E = 2 D elements: a key and its value.
        blocks_RC: ids of C blocks for each of R requests.
    """
    states_RGNE = cache_BGPE[blocks_RC].transpose(1, 2).flatten(2, 3)
    return states_RGNE.chunk(2, dim=-1)
