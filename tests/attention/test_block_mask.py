"""The analytic block mask against the elements it stands for, and its attention through SDPA on the CPU."""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.block_mask import TILE, causal_over_sparse_tiles, lrsa_block_mask
from lrsa_lightning.attention.lagkv import gather_tokens

CPU = torch.device("cpu")
CASES = [
    # num_tokens, sink, lag, ratio
    (1024, 16, 128, 0.5),
    (1000, 16, 100, 0.25),
    (2048, 0, 256, 1.0),
    (1500, 200, 64, 0.5),
    (900, 5, 300, 0.0),
    (513, 3, 7, 0.9),
]


def element_mask(num_tokens, mode):
    chunking = mode.chunking()
    return fill.static_mask(0, num_tokens, chunking.compact_len(num_tokens), 0, chunking, CPU)


@pytest.mark.parametrize(("num_tokens", "sink", "lag", "ratio"), CASES)
def test_tiles_and_elements(num_tokens, sink, lag, ratio):
    mode = LRSA(lag_size=lag, sink_size=sink, retention_ratio=ratio)
    mask = lrsa_block_mask(num_tokens, mode.chunking(), CPU)
    elements = element_mask(num_tokens, mode)
    q, kv = torch.arange(num_tokens)[:, None], torch.arange(elements.shape[1])[None, :]
    assert torch.equal(mask.mask_mod(0, 0, q, kv), elements)

    rows, columns = -(-num_tokens // TILE), -(-elements.shape[1] // TILE)
    padded = torch.nn.functional.pad(elements, (0, columns * TILE - elements.shape[1], 0, rows * TILE - num_tokens))
    tiles = padded.unflatten(1, (columns, TILE)).unflatten(0, (rows, TILE))
    any_seen, all_seen = tiles.any(dim=3).any(dim=1), tiles.all(dim=3).all(dim=1)
    for row in range(rows):
        partial = mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist()
        full = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist()
        assert sorted(partial + full) == any_seen[row].nonzero().flatten().tolist()
        assert full == all_seen[row].nonzero().flatten().tolist()


def test_attention_under_the_mask_equals_naive():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 700, 16, dtype=torch.float64) for h in (6, 2, 2))
    mode = LRSA(lag_size=64, sink_size=16)
    mask = lrsa_block_mask(700, mode.chunking(), CPU)
    idx = mode.select(k, v)
    k_ext, v_ext = (torch.cat([gather_tokens(z, idx), z], dim=2) for z in (k, v))
    elements = mask.mask_mod(0, 0, torch.arange(700)[:, None], torch.arange(k_ext.shape[2])[None, :])
    out = fill.sdpa(q, k_ext, v_ext, elements, None)
    torch.testing.assert_close(out, naive.lrsa_attention(q, k, v, mode), rtol=0, atol=1e-10)


def test_speed_limit_of_the_tiles():
    """32K tokens, L = 1024: figures of the issue this implements, counted in 128x128 tiles."""
    limits = [causal_over_sparse_tiles(32768, LRSA(retention_ratio=r).chunking()) for r in (0.5, 0.25)]
    assert limits == pytest.approx([1.75, 2.90], abs=0.01)


def test_one_mask_a_shape_is_built():
    chunking = LRSA(lag_size=64).chunking()
    assert lrsa_block_mask(600, chunking, CPU) is lrsa_block_mask(600, chunking, CPU)
