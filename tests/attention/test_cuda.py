"""What only a GPU can run: FlexAttention, FlashAttention-4 and Triton, against `naive`, `fill` and the rule.

Compilation takes most of the time. FlexAttention compiles for each shape, mask and dtype, forward and backward.
FlashAttention-4 compiles for each head size, ratio of heads, rule and dtype, and for one sample apart from several.
So the tests share a few shapes. Reuse these before you add one.
"""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, flash, flex, lagkv, naive
from lrsa_lightning.attention.flex import pick_kernel
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import gather_tokens
from lrsa_lightning.distributed.layout import ContextLayout
from tests.conftest import make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LONG_CHUNKS = {"lag_size": 256, "sink_size": 16}
SHORT_CHUNKS = {"lag_size": 64, "sink_size": 4}
# Samples, query heads, KV heads, tokens, head size.
GROUPED = (1, 12, 2, 3000, 128)
UNGROUPED = (2, 4, 4, 769, 64)
NO_POWER_OF_TWO = (1, 6, 1, 1100, 80)
# A model whose attention has the shape UNGROUPED. One layer: rounding in a second one's keys might keep other tokens.
UNGROUPED_MODEL = {
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
}


def random_qkv(batch, heads, groups, num_tokens, dim, dtype=torch.bfloat16):
    torch.manual_seed(0)
    shapes = [(batch, num_tokens, h, dim) for h in (heads, groups, groups)]
    return [torch.randn(s, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


def random_ids(*shape):
    return torch.randint(0, 97, shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0))


def skip_without(kernel, q):
    if kernel == "FLASH" and pick_kernel(q) != "FLASH":
        pytest.skip("flash-attn-4 is not installed, or does not take this head size")


def with_gradients(out, inputs):
    weights = torch.randn(out.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    return out, *torch.autograd.grad(out, inputs, weights.to(out.dtype))


def assert_close(outcome, reference):
    """Output, then gradients, up to bf16 rounding."""
    torch.testing.assert_close(outcome[0].float(), reference[0].float(), rtol=2e-2, atol=2e-2)
    for got, expected in zip(outcome[1:], reference[1:], strict=True):
        assert (got.float() - expected.float()).norm() < 6e-3 * expected.float().norm()


@pytest.mark.parametrize("kernel", ["TRITON", "FLASH"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [(GROUPED, LONG_CHUNKS), (UNGROUPED, SHORT_CHUNKS), (NO_POWER_OF_TWO, LONG_CHUNKS)],
    ids=["grouped heads", "as many KV heads", "head size 80"],
)
@pytest.mark.parametrize("scorer", ["lagkv", "random"])
def test_flex_equals_naive_in_output_and_gradients(kernel, shape, sizes, scorer):
    qkv = random_qkv(*shape)
    skip_without(kernel, qkv[0])
    mode = LRSA(**sizes, scorer=scorer)
    outcome = with_gradients(flex.lrsa_attention(*qkv, mode, kernel=kernel), qkv)
    assert_close(outcome, with_gradients(naive.lrsa_attention(*qkv, mode), qkv))


def test_steps_of_an_elastic_mode_equal_naive_under_their_ratios():
    qkv = random_qkv(*GROUPED)
    mode = LRSA(**LONG_CHUNKS, retention_ratio=[1.0, 0.5, 0.25])
    for of_step, _ in mode.phases():
        outcome = with_gradients(of_step.execution.attend_sequence(*qkv, of_step.rule()), qkv)
        assert_close(outcome, with_gradients(naive.lrsa_attention(*qkv, of_step), qkv))


def test_float32_stays_float32():
    qkv = random_qkv(*UNGROUPED, torch.float32)
    mode, scale = LRSA(**SHORT_CHUNKS), UNGROUPED[-1] ** -0.5  # the scale of a model: both share a compiled kernel
    outcome = with_gradients(flex.lrsa_attention(*qkv, mode, scale, kernel="TRITON"), qkv)
    reference = with_gradients(naive.lrsa_attention(*qkv, mode, scale), qkv)
    for got, expected in zip(outcome, reference, strict=True):
        assert (got - expected).norm() < 1e-5 * expected.norm()


def test_long_rows_run_the_queries_of_the_sink_apart():
    qkv = random_qkv(1, 6, 1, 33000, 128)
    skip_without("FLASH", qkv[0])
    mode = LRSA(**LONG_CHUNKS)
    wide = [z.detach().float().requires_grad_() for z in qkv]
    outcome = with_gradients(flex.lrsa_attention(*qkv, mode, kernel="FLASH"), qkv)
    reference = with_gradients(fill.lrsa_attention(*wide, mode), wide)
    assert_close(outcome, reference)
    assert_close(*([z[:, :, : mode.sink_size] for z in parts] for parts in (outcome, reference)))


@pytest.mark.parametrize(("kernel", "index"), [("FLASH", 0), ("FLASH", 1), ("FLASH", 2), ("TRITON", 2)])
def test_segments_that_ranks_hold(kernel, index):
    q, k, v = random_qkv(1, 12, 2, 4200, 128)
    skip_without(kernel, q)
    mode = LRSA(**LONG_CHUNKS)
    rule = mode.rule()
    segment = ContextLayout(4200, rule, 2).segments[index]
    first_raw = max(0, segment.start - rule.lag_size)
    visible = rule.compact_visible(rule.chunk_of(segment.stop - 1))
    idx = rule.select(k.detach(), v.detach())[:, :, :visible]
    layout = KVLayout(rule, visible, segment.num_tokens, segment.start, first_raw)

    def attend(execution, q, k, v, *more):
        compact, raw = ([*parts] for parts in zip(*((gather_tokens(z, idx), z) for z in (k, v)), strict=True))
        raw = [z[:, :, first_raw : segment.stop] for z in raw]
        return execution(q[:, :, segment.start : segment.stop], compact, raw, layout, *more)

    wide = [z.detach().float().requires_grad_() for z in (q, k, v)]
    outcome = with_gradients(attend(flex.attend_segment, q, k, v, None, kernel), (q, k, v))
    assert_close(outcome, with_gradients(attend(fill.attend, *wide), wide))


# Under Triton the long samples are padded to one length.
PACKED = [[0, 1450, 1550, 3000], [0, 1500, 3000]]


@pytest.mark.parametrize("kernel", ["TRITON", "FLASH"])
def test_packed_rows(kernel):
    qkv = random_qkv(2, *GROUPED[1:])
    skip_without(kernel, qkv[0])
    mode = LRSA(**LONG_CHUNKS)
    outcome = with_gradients(flex.lrsa_attention(*qkv, mode, kernel=kernel, cu_seqlens=PACKED), qkv)
    assert_close(outcome, with_gradients(naive.lrsa_attention(*qkv, mode, cu_seqlens=PACKED), qkv))


@pytest.mark.parametrize("kernel", ["TRITON", "FLASH"])
def test_the_host_waits_for_nothing(kernel):
    """Neither where the lists of new lengths are made, nor in the backward."""
    qkv = random_qkv(2, *GROUPED[1:])
    skip_without(kernel, qkv[0])

    def step():
        flex.lrsa_attention(*qkv, LRSA(**LONG_CHUNKS), kernel=kernel, cu_seqlens=PACKED).sum().backward()

    step()  # compiles
    for lists in (flex._training_layout, flex.block_mask, flash._tile_lists):
        lists.cache_clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("sizes", "ratio", "dtype"),
    [
        (LONG_CHUNKS, 0.5, torch.bfloat16),
        ({"lag_size": 100, "sink_size": 0}, 0.25, torch.float32),
        ({"lag_size": 7, "sink_size": 3}, 0.9, torch.bfloat16),
        ({"lag_size": 1024, "sink_size": 200}, 0.01, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("v_weight", [1.0, 0.0, -0.5])
def test_fused_selection_equals_the_rule(sizes, ratio, dtype, v_weight):
    """Compiled; `test_kernels.py` compares more of it under Triton's interpreter."""
    from lrsa_lightning.attention import kernels

    _, k, v = (z.detach() for z in random_qkv(2, 4, 2, 3333, 128, dtype))
    k[:, :, 500:900, 3] = 1.5  # a channel without range
    k[:, :, 1000:1100] = k[:, :, 1000:1001]  # equal tokens: ties
    v[:, :, 1000:1100] = v[:, :, 1000:1001]
    mode = LRSA(**sizes, retention_ratio=ratio, v_weight=v_weight)
    idx, inverse = kernels.select(k, v, mode.rule())
    expected = lagkv.select(k, v, mode.lag_size, mode.sink_size, ratio, v_weight)
    # Scores that differ by rounding alone may be ordered either way.
    assert (idx != expected).float().mean() < 1e-3
    places = torch.arange(idx.shape[-1], device="cuda", dtype=torch.int32).expand_as(idx)
    assert torch.equal(inverse.gather(2, idx), places)
    assert int((inverse >= 0).sum()) == idx.numel()


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
def test_a_model_trains_under_lightnings_precisions_as_with_fill(precision):
    from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision

    plugins = {
        "bf16-true": lambda: HalfPrecision("bf16-true"),
        "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cuda"),
        "32-true": Precision,
    }
    plugin = plugins[precision]()
    ids = random_ids(UNGROUPED[0], UNGROUPED[3])
    losses, gradients = [], []
    for backend in ("flex", "fill"):
        model = plugin.convert_module(make_model(**UNGROUPED_MODEL).cuda().train())
        LRSA(**SHORT_CHUNKS, backend=backend).install(model)
        with plugin.forward_context():
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach().float())
        gradients.append(torch.cat([p.grad.flatten().float() for p in model.parameters()]))
    tolerance = 1e-3 if precision == "32-true" else 3e-2
    torch.testing.assert_close(*losses, rtol=tolerance, atol=0)
    assert (gradients[0] - gradients[1]).norm() < 5 * tolerance * gradients[1].norm()


def test_deterministic_algorithms_do_not_take_flash():
    q, _, _ = random_qkv(1, 4, 2, 256, 128)
    torch.use_deterministic_algorithms(True)
    try:
        assert pick_kernel(q) == "TRITON"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("pieces", [[5000], [1000, 1, 2999, 1000], [4096, 904]], ids=str)
@torch.no_grad()
def test_prefill_in_pieces_equals_the_masked_forward(pieces):
    """Through flash-attn-4 where it is installed, else through fill."""
    # One layer: further ones would see rounding in their keys, and might keep other tokens.
    model = make_model(hidden_size=128, head_dim=128, num_hidden_layers=1, max_position_embeddings=8192)
    model = model.cuda().bfloat16()
    ids = torch.randint(0, 97, (2, sum(pieces)), device="cuda")
    logits = {}
    for backend in ("auto", "fill"):
        mode = LRSA(**LONG_CHUNKS, backend=backend)
        mode.install(model)
        cache, parts = mode.make_cache(model.config), []
        for piece in ids.split(pieces, dim=1):
            parts.append(model(piece, past_key_values=cache, use_cache=True).logits)
        logits[backend] = torch.cat(parts, dim=1), model(ids, use_cache=False).logits
    expected = logits["fill"][1].float()
    for got in logits["auto"]:
        assert (got.float() - expected).norm() < 1e-2 * expected.norm()


@torch.no_grad()
def test_a_model_gives_the_same_logits_under_flex_and_fill():
    model, ids, logits = make_model(**UNGROUPED_MODEL).cuda(), random_ids(UNGROUPED[0], UNGROUPED[3]), []
    for backend in ("flex", "fill"):
        LRSA(**SHORT_CHUNKS, backend=backend).install(model)
        logits.append(model(ids, use_cache=False).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=2e-2)
