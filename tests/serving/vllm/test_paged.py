"""Steps, moves and compact tables on a paged cache, against the specification: on CPU, and on a GPU if there is one."""

import pytest
import torch

from lrsa_lightning.attention import naive
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.scorers import make_scorer
from tests.serving.vllm.paged_cache import PagedCache

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
# Sink, kept of 64, scorer, block.
RULES = [
    (16, 32, "lagkv", 16),
    (0, 16, "random", 16),
    (21, 48, "key_norm", 16),
    (40, 0, "window", 32),
    (1, 32, "lagkv", 32),
]
# Tokens of each request in each step: prompts in pieces of all lengths, a pause at a boundary, decoding over others.
STEPS = [[200, 17, 0], [64, 64, 300], [8, 250, 1], [0, 1, 1], [127, 1, 60], *([[1, 1, 1]] * 70)]


def states_of(num_tokens: int, device: str, seed: int):
    torch.manual_seed(seed)
    return tuple(torch.randn(heads, num_tokens, 32, device=device) for heads in (4, 2, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("sink", "kept", "scorer", "block"), RULES)
def test_attention_of_a_continuous_batch(sink, kept, scorer, block, device):
    rule = LagRule(sink, 64, kept, make_scorer(scorer, 1.5, seed=3))
    lengths = [sum(column) for column in zip(*STEPS, strict=True)]
    states = [states_of(length, device, seed) for seed, length in enumerate(lengths)]
    cache = PagedCache(rule, block, 3 * (max(lengths) // block + 2), states)
    out = [torch.cat(parts, dim=1) for parts in zip(*map(cache.step, STEPS), strict=True)]
    for (q, k, v), got in zip(states, out, strict=True):
        wanted = naive.lrsa_attention(q.double()[None], k[None], v[None], rule)[0]
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
    dropped = sum((64 - kept) // block * rule.compressed_chunks(length - 2) for length in lengths)
    pool = 3 * (max(lengths) // block + 2)
    held = sum(-(-length // block) for length in lengths) - dropped
    assert pool - len(cache.free) == held
