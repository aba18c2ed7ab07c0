"""Every kernel of `kernels.py` against the torch code that it replaces, on CPU tensors under Triton's interpreter.

Shape suffixes: B batch, G KV heads, N tokens, D head size, C compact keys, E extended keys.
"""

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from lrsa_lightning.attention.layout import TILE, KVLayout
from lrsa_lightning.attention.rule import LagRule, gather_tokens
from lrsa_lightning.attention.scorers import LagKVScorer

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (it has wheels for Linux)")


def rule(sink: int, lag: int, kept: int, v_weight: float = 0.7) -> LagRule:
    return LagRule(sink, lag, kept, LagKVScorer(v_weight))


def select(k_BGND: Tensor, v_BGND: Tensor, sizes: LagRule) -> tuple[Tensor, Tensor]:
    """The fused selection: positions of the compact keys, and their inverse."""
    from lrsa_lightning.attention import kernels

    return kernels.select(k_BGND, v_BGND, sizes)


def select_by_rule(k_BGND: Tensor, v_BGND: Tensor, sizes: LagRule) -> tuple[Tensor, Tensor]:
    """The same by the torch code."""
    idx_BGC = sizes.select(k_BGND, v_BGND)
    return idx_BGC, inverse_of(idx_BGC, k_BGND.shape[2])


def extend(k_BGND: Tensor, v_BGND: Tensor, idx_BGC: Tensor, mask: KVLayout, gradients: list[Tensor]) -> list[Tensor]:
    """The extended keys and values, then the gradients of keys and values, by the kernels."""
    from lrsa_lightning.attention import kernels

    inputs = [z.requires_grad_() for z in (k_BGND, v_BGND)]
    outputs = kernels.Extend.apply(*inputs, idx_BGC, inverse_of(idx_BGC, k_BGND.shape[2]), mask)
    return [*(z.detach() for z in outputs), *torch.autograd.grad(outputs, inputs, gradients)]


def extend_by_gathering(
    k_BGND: Tensor, v_BGND: Tensor, idx_BGC: Tensor, mask: KVLayout, gradients: list[Tensor]
) -> list[Tensor]:
    """The same by torch's autograd."""
    inputs = [z.requires_grad_() for z in (k_BGND, v_BGND)]
    outputs = [mask.lay_out(gather_tokens(z, idx_BGC), z[:, :, mask.first_raw :]) for z in inputs]
    return [*(z.detach() for z in outputs), *torch.autograd.grad(outputs, inputs, gradients)]


LAYOUTS = {
    "padding": KVLayout.of_sequence(rule(16, 64, 32), 300, TILE),
    "no padding": KVLayout.of_sequence(rule(0, 64, 32), 335, TILE),
    "duplicated tiles": KVLayout.of_sequence(rule(16, 32, 32), 900, TILE).with_duplicates(),
    "without the sink's queries": KVLayout.after_sink(rule(20, 32, 32), 900, TILE).with_duplicates(),
}


def prepare() -> None:
    """Memory that a kernel leaves unwritten then holds NaN, or the largest integer."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="module")
def interpreted():
    """Runs a function in a process where Triton interprets its kernels.

    Triton reads the variable at its import. Other tests of this process may need compiled kernels.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        pool.submit(prepare).result()
    with pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def inverse_of(idx_BGC: Tensor, num_tokens: int) -> Tensor:
    """int32 [B, G, N]: the compact key of each token, -1 where it has none."""
    places_BGC = torch.arange(idx_BGC.shape[-1], dtype=torch.int32).expand_as(idx_BGC)
    return torch.full((*idx_BGC.shape[:2], num_tokens), -1, dtype=torch.int32).scatter(2, idx_BGC, places_BGC)


def random_tokens(batch: int, groups: int, num_tokens: int, dim: int, dtype=torch.float32):
    """Keys [B, G, N, D] in the memory order of a model, [B, N, G, D], and contiguous values."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, batch, num_tokens, groups, dim, generator=generator).to(dtype).transpose(2, 3)
    return k, v.contiguous()


def assert_same_selection(interpreted, k, v, sizes):
    got, expected = interpreted(select, k, v, sizes), select_by_rule(k, v, sizes)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("sizes", "shape", "dtype"),
    [
        (rule(3, 7, 4), (2, 1, 3 + 2 * 7, 16), torch.float32),  # a single chunk is compressed
        (rule(0, 16, 8), (1, 2, 5 * 16 + 15, 32), torch.bfloat16),  # no sink; the longest tail
        (rule(20, 33, 1), (2, 2, 20 + 3 * 33 + 5, 64), torch.float16),
        (rule(16, 100, 50), (1, 1, 16 + 2 * 100, 256), torch.float32),  # a chunk too large to be read at once
        (rule(5, 8, 8), (1, 3, 5 + 4 * 8 + 1, 2), torch.bfloat16),  # all tokens are kept
        (rule(1, 61, 30), (1, 2, 1 + 4 * 61, 2), torch.float32),
    ],
    ids=str,
)
def test_fused_selection_equals_the_rule(interpreted, sizes, shape, dtype):
    assert_same_selection(interpreted, *random_tokens(*shape, dtype), sizes)


@pytest.mark.parametrize("v_weight", [1.0, 0.0, -0.5, -3.0])
def test_fused_selection_weighs_the_values_as_the_rule(interpreted, v_weight):
    """Each chunk is four times as wide as the next one: only then do scores depend on the size of the deviations."""
    widths = 4.0 ** -(torch.arange(150) // 32).unsqueeze(-1)
    assert_same_selection(interpreted, *(z * widths for z in random_tokens(1, 2, 150, 2)), rule(0, 32, 11, v_weight))


def constant_channels(z):
    z[..., 2:5] = 1.5


def equal_tokens(z):
    z[:, :, 10:40] = z[:, :, 10:11]


def equal_chunks(z):
    z[:] = 0.25


def zeros_and_ones(z):
    z[:] = (z > 0.3).to(z.dtype)


def tiny(z):
    # Subnormal, but for bfloat16: the interpreter misreads its subnormal numbers.
    z *= {torch.float32: 1e-40, torch.float16: 1e-6, torch.bfloat16: 1e-34}[z.dtype]


def huge(z):
    z /= z.abs().max()
    z *= torch.finfo(z.dtype).max


def huge_beside_tiny(z):
    """Against a chunk of tiny numbers, a normalised huge one is beyond all bounds."""
    tiny(z)
    z[:, :, 14::26] = z[:, :, 14::26].sign() * torch.finfo(z.dtype).max


def far_above_zero(z):
    z += 5


def far_below_zero(z):
    z -= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        constant_channels,
        equal_tokens,
        equal_chunks,
        zeros_and_ones,
        tiny,
        huge,
        huge_beside_tiny,
        far_above_zero,
        far_below_zero,
    ],
    ids=lambda change: change.__name__,
)
def test_fused_selection_equals_the_rule_on_unusual_values(interpreted, change, dtype):
    k, _ = random_tokens(1, 2, 4 + 4 * 13 + 3, 8, dtype)
    change(k)
    assert_same_selection(interpreted, k, k.clone(), rule(4, 13, 5))


def test_fused_selection_takes_keys_and_values_of_two_dtypes_and_any_memory_order(interpreted):
    k, v = random_tokens(2, 2, 71, 16)
    k = 1 + k / 1000  # equal in bfloat16
    k = k.transpose(2, 3).contiguous().transpose(2, 3)
    assert k.stride(-1) != 1
    assert_same_selection(interpreted, k[:, :, 1:], v.bfloat16()[:, :, 1:], rule(4, 16, 5))


def random_layout(mask: KVLayout, dtype=torch.float32):
    """Keys, values, compact positions and gradients; integers, so that the order of a sum changes nothing."""
    torch.manual_seed(0)
    num_tokens = mask.first_query + mask.num_queries
    tokens = random_tokens(2, 2, num_tokens, 16, dtype)
    idx = torch.rand(2, 2, num_tokens).argsort(dim=-1)[..., : mask.num_compact].sort(dim=-1).values
    grad_k, grad_v = torch.randint(-8, 9, (2, 2, mask.num_keys, 2, 16)).to(dtype).transpose(2, 3)
    return *tokens, idx, [grad_k, grad_v.contiguous()]


def assert_same_extension(interpreted, *arguments):
    got = interpreted(extend, *arguments)
    for ours, theirs in zip(got, extend_by_gathering(*arguments), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    # In the memory order of a model: its projections would copy them otherwise.
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in got[2:])


@pytest.mark.parametrize(("layout", "dtype"), zip(LAYOUTS, [torch.float32, torch.bfloat16] * 2, strict=True), ids=str)
def test_extended_keys_and_their_gradients_equal_those_of_gathering(interpreted, layout, dtype):
    mask = LAYOUTS[layout]
    assert (mask.num_duplicates > 0) == ("padding" not in layout)
    assert (mask.num_compact % TILE == 0) == (layout == "no padding")
    k, v, idx, gradients = random_layout(mask, dtype)
    assert_same_extension(interpreted, k, v, idx, mask, gradients)


def test_extending_takes_any_memory_order(interpreted):
    mask = LAYOUTS["no padding"]
    k, v, idx, gradients = random_layout(mask)
    k, gradients[0] = (z.transpose(2, 3).contiguous().transpose(2, 3) for z in (k, gradients[0]))
    gradients[1] = torch.ones(()).expand_as(gradients[1])
    assert_same_extension(interpreted, k, v, idx, mask, gradients)
