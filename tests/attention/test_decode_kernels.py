"""The kernels of a decoding step against torch's operators, on CPU tensors under Triton's interpreter.

Shape suffixes: B batch, H query heads, G KV heads, T tokens of the storage, D head size.
"""

from importlib.util import find_spec

import pytest
import torch

from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.scorers import LagKVScorer
from lrsa_lightning.attention.token_counts import NewTokens
from lrsa_lightning.attention.token_step import FusedTokenStep, TokenStep
from tests.attention.test_kernels import interpreted  # noqa: F401  a fixture

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (it has wheels for Linux)")


def steps(sizes: LagRule, seen: list[int], groups: int, shared: int, dim: int, dtype, num_steps: int):
    """What rows attend to and hold, token by token, by torch's operators and by the kernels.

    Returns:
        for each step both outputs and both storages; tokens beyond those held are zero in the latter.
    """
    generator, batch = torch.Generator().manual_seed(0), len(seen)
    capacity = max(sizes.most_held(n + num_steps) for n in seen)
    storage = torch.randn(2, batch, groups, capacity, dim, generator=generator).to(dtype)
    storages, results = [[z.clone() for z in storage] for _ in range(2)], []
    for step in range(num_steps):
        q = torch.randn(batch, groups * shared, 1, dim, generator=generator).to(dtype)
        # In the memory order of a model: a token's heads are side by side.
        new = torch.randn(2, batch, 1, groups, dim, generator=generator).to(dtype).transpose(2, 3)
        rows = [NewTokens(n + step, 0, 1) for n in seen]
        after_B = torch.tensor([row.after for row in rows])
        fused = FusedTokenStep(sizes, *storages[1], rows, seen_B=after_B, compresses=True)
        outputs = []
        for token, held in zip((TokenStep(sizes, *storages[0], rows), fused), storages, strict=True):
            token.append(*new)
            outputs.append(token.attend(q, 0.3))
            token.compress(lambda k, v, start: sizes.keep_best(k, v, 0, start))
            for row, tokens in enumerate(rows):
                for z in held:
                    z[row, :, sizes.stored_len(tokens.after) :] = 0
        results.append((outputs, [torch.stack(held) for held in storages]))
    return results


@pytest.mark.parametrize(
    ("sizes", "seen", "groups", "shared", "dim", "dtype"),
    [
        (LagRule(3, 5, 2, LagKVScorer()), [4, 11, 12, 13], 2, 3, 16, torch.float32),
        (LagRule(0, 8, 8, LagKVScorer()), [15, 40], 1, 1, 32, torch.float32),
        (LagRule(2, 7, 0), [15, 16, 21], 1, 6, 16, torch.float32),
        (
            LagRule(16, 70, 35, LagKVScorer(0.5)),
            [153, 155],
            2,
            2,
            128,
            torch.float16,
        ),  # the interpreter multiplies no bfloat16
        (LagRule(4, 8, 4).without_chunks(), [1, 130], 2, 2, 16, torch.float32),
    ],
    ids=str,
)
def test_kernels_equal_torch_at_every_position_of_a_chunk(interpreted, sizes, seen, groups, shared, dim, dtype):  # noqa: F811
    num_steps = 2 * min(sizes.lag_size, 8) + 2
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    compressions = 0
    for step, (outputs, storages) in enumerate(interpreted(steps, sizes, seen, groups, shared, dim, dtype, num_steps)):
        torch.testing.assert_close(*outputs, rtol=0, atol=tolerance)
        assert torch.equal(*storages)
        compressions += sum(sizes.compressed_chunks(n + step + 1) > sizes.compressed_chunks(n + step) for n in seen)
    assert compressions or not sizes.drops_tokens
