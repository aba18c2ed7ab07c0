"""Attention under sequence parallelism against `naive` on complete sequences, in float64."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.distributed import group as collectives
from lrsa_lightning.distributed.context import ContextParallel
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.layout import ContextLayout
from lrsa_lightning.distributed.ulysses import Ulysses
from lrsa_lightning.errors import InputError
from tests.conftest import make_model
from tests.distributed.ranks import on_ranks

SIZES = (1, 2, 3, 4, 8)
DIM, BATCH = 8, 2
SIZES_OF_A_MODEL = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": DIM}
KINDS = ("all_to_all", "all_gather", "all_gather_no_grad", "reduce_scatter")


def full_attention(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def inputs(heads: int, kv_heads: int, num_tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, h, num_tokens, DIM) for h in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def on_one_device(mode, layer_idx, q, k, v, weight) -> list[torch.Tensor]:
    """Output and gradients on one device."""
    leaves = [z.clone().requires_grad_() for z in (q, k, v)]
    if isinstance(mode, Vanilla):
        out = full_attention(*leaves)
    else:
        out = naive.lrsa_attention(*leaves, mode, layer_idx=layer_idx)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


def compare(case: dict, group: SequenceGroup | None) -> dict | None:
    """This rank's largest errors in output, dq, dk and dv, and the elements it received."""
    if group is None:
        return None
    mode, heads, kv_heads, num_tokens = case["mode"], case["heads"], case["kv_heads"], case["num_tokens"]
    config = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=DIM, hidden_size=1
    )
    options = {"zigzag": False} if case.get("contiguous") else {}
    sharded = case["kind"](mode, config, num_tokens, group, **options)
    module = SimpleNamespace(layer_idx=case.get("layer_idx", 0), is_causal=True, training=True, config=config)
    full = inputs(heads, kv_heads, num_tokens)
    expected = on_one_device(mode, module.layer_idx, *full)
    padding = max(0, int(sharded.positions[-1]) + 1 - num_tokens)
    own = [torch.nn.functional.pad(z, (0, 0, 0, padding))[:, :, sharded.positions] for z in full]
    leaves = [z.clone().requires_grad_() for z in own[:3]]
    out = sharded.attend(module, *leaves, None).transpose(1, 2)
    forward = dict(group.received)
    grads = torch.autograd.grad((out * own[3]).sum(), leaves)
    real = sharded.positions < num_tokens
    errors = [
        float((mine[:, :, real] - theirs[:, :, sharded.positions[real]]).abs().max())
        for mine, theirs in zip([out, *grads], expected, strict=True)
    ]
    backward = {name: count - forward.get(name, 0) for name, count in group.received.items()}
    return {"errors": errors, "forward": forward, "backward": backward, "formula": sharded.received_elements()}


def compare_all(cases: list[dict]) -> list:
    groups = {}
    for size in SIZES:
        process_group = dist.new_group(range(size))
        if dist.get_rank() < size:
            groups[size] = process_group
    found = []
    for case in cases:
        size = case["size"]
        group = SequenceGroup(dist.get_rank(), size, groups[size]) if size in groups else None
        found.append(compare(case, group))
    return found


def lrsa(**options) -> LRSA:
    return LRSA(**{"lag_size": 4, "sink_size": 3, "retention_ratio": 0.5, **options})


def context(size: int, mode=None, **options) -> dict:
    defaults = {"kind": ContextParallel, "heads": 6, "kv_heads": 2, "num_tokens": 69}
    return {**defaults, "mode": mode or lrsa(), "size": size, **options}


def ulysses(size: int, mode=None, **options) -> dict:
    return context(size, mode, **{"kind": Ulysses, "heads": 8, "kv_heads": 2, **options})


CASES = {
    **{f"context-{size}": context(size) for size in SIZES},
    **{f"context-contiguous-{size}": context(size, contiguous=True) for size in SIZES},
    **{f"context-scorer-{s}": context(3, lrsa(scorer=s)) for s in ("random", "key_norm", "window")},
    **{f"context-chunks-{n}": context(4, num_tokens=3 + 4 * n + 1) for n in (4, 5, 7, 8, 9, 15)},
    "context-no-tail": context(4, num_tokens=67),
    "context-no-sink": context(4, lrsa(sink_size=0)),
    "context-quarter": context(2, lrsa(retention_ratio=0.25, v_weight=0.5)),
    "context-dense": context(4, lrsa(retention_ratio=1.0)),
    "context-skipped-layer": context(4, lrsa(skip_layers=(1,)), layer_idx=1),
    "context-other-layer": context(4, lrsa(skip_layers=(0,), scorer="random"), layer_idx=1),
    "context-two-chunks-a-fill": context(2, lrsa(chunks_per_fill=2)),
    "context-lag-1": context(4, lrsa(lag_size=1, retention_ratio=1.0), num_tokens=20),
    "context-heads-1": context(8, heads=2, kv_heads=1),
    "context-vanilla": context(4, Vanilla()),
    "context-vanilla-odd": context(3, Vanilla(), num_tokens=50),
    **{f"ulysses-{size}": ulysses(size) for size in (1, 2, 4, 8)},
    "ulysses-padded": ulysses(4, num_tokens=70),
    "ulysses-random": ulysses(4, lrsa(scorer="random")),
    "ulysses-random-copies": ulysses(8, lrsa(scorer="random")),
    "ulysses-skipped-layer": ulysses(2, lrsa(skip_layers=(1,)), layer_idx=1),
    "ulysses-vanilla": ulysses(2, Vanilla()),
    "ulysses-vanilla-copies": ulysses(8, Vanilla()),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list]:
    results = on_ranks(max(SIZES), compare_all, list(CASES.values()), tmp_path=tmp_path_factory.mktemp("ranks"))
    by_case = zip(*results, strict=True)
    return {name: [r for r in ranks if r is not None] for name, ranks in zip(CASES, by_case, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_ranks_compute_the_attention_of_one_device(found, name):
    assert len(found[name]) == CASES[name]["size"]
    for rank in found[name]:
        assert max(rank["errors"]) < 1e-12, rank


@pytest.mark.parametrize("name", [name for name in CASES if "skipped" not in name])
def test_ranks_receive_the_elements_of_the_formula(found, name):
    ranks = found[name]
    for rank in ranks:
        assert sum(rank["forward"].values()) == BATCH * rank["formula"]
    # All that has a gradient comes back; the ranges of the next chunks have none.
    sent, returned = ({k: sum(r[way].get(k, 0) for r in ranks) for k in KINDS} for way in ("forward", "backward"))
    assert returned["reduce_scatter"] == sent["all_gather"]
    assert returned["all_to_all"] == sent["all_to_all"]
    assert returned["all_gather_no_grad"] == returned["all_gather"] == sent["reduce_scatter"] == 0


@pytest.mark.parametrize(("kind", "mebibytes"), [(Ulysses, 48.0), (ContextParallel, 14.0)])
def test_the_volume_of_a_model_at_32k(kind, mebibytes):
    """Qwen2.5-1.5B on four ranks, bf16, r = 1/2, against the formulas of the literature."""
    config = SimpleNamespace(num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, head_dim=128)
    heads, kept, sink, lag = 12, 0.5, 16, 1024
    by_hand = {
        Ulysses: (2 * heads + 2 * 4) * 32768 // 4 * 128 * 3 / 4,
        ContextParallel: 2 * 2 * 128 * (kept * 32768 * 3 / 4 + sink + 2 * lag),
    }[kind]
    sharded = kind(LRSA(lag_size=lag, sink_size=sink), config, 32768, SequenceGroup(1, 4))
    assert sharded.received_elements() == pytest.approx(by_hand, rel=0.03)
    assert sharded.received_elements() * 2 / 2**20 == pytest.approx(mebibytes, rel=0.03)


def under_autocast(kind: type, send: str) -> tuple[float, list[int]]:
    """The largest difference from one device, both in bf16, and the bytes of each element sent."""
    group = SequenceGroup.of_world(2)
    sharded = kind(lrsa(lag_size=64), SimpleNamespace(**SIZES_OF_A_MODEL), 1500, group)
    q, k, v, _ = (z.float() for z in inputs(6, 2, 1500))
    v = v.bfloat16()  # the projection's; RoPE has widened the others
    sizes, sent = [], getattr(SequenceGroup, send)

    def watched(group: SequenceGroup, x: torch.Tensor, *messages):
        sizes.append(x.itemsize)
        return sent(group, x, *messages)

    with torch.autocast("cpu", torch.bfloat16):
        rounded = (z.bfloat16() for z in (q, k, v))  # as the mode does
        expected = fill.lrsa_attention(*rounded, sharded.mode, layer_idx=0)[:, :, sharded.positions]
        with patch.object(SequenceGroup, send, watched):
            own = (z[:, :, sharded.positions] for z in (q, k, v))
            out = sharded.attend(SimpleNamespace(layer_idx=0, config=SimpleNamespace()), *own, None).transpose(1, 2)
    return float((out - expected).abs().max()), sizes


@pytest.mark.parametrize(
    ("kind", "send", "itemsizes"),
    # Ulysses sends queries, keys and values together, then the outputs.
    [(ContextParallel, "start", [2, 2]), (Ulysses, "all_to_all", [2, 2])],
)
def test_autocast_rounds_what_ranks_send_and_score(tmp_path, kind, send, itemsizes):
    for difference, sizes in on_ranks(2, under_autocast, kind, send, tmp_path=tmp_path):
        assert difference < 0.02, difference
        assert sizes == itemsizes


def events_of_an_attention() -> list[str]:
    """The events on this rank in forward and backward of a layer under context parallelism, in order."""
    sharded = ContextParallel(lrsa(), SimpleNamespace(**SIZES_OF_A_MODEL), 69, SequenceGroup.of_world(2))
    leaves = [z[:, :, sharded.positions].requires_grad_() for z in inputs(6, 2, 69)[:3]]
    events, attend, gather, reduce = [], Execution.attend_segment, collectives._gather, collectives._reduce
    arrivals = collectives.Exchange.arrivals

    def watched_attend(*args):
        events.append("attend")
        out = attend(*args)
        out.register_hook(lambda grad: events.append("attend backward"))
        return out

    def watched(name: str, function):
        return lambda *args: (events.append(name), function(*args))[1]

    with (
        patch.object(Execution, "attend_segment", watched_attend),
        patch.object(collectives, "_gather", watched("send", gather)),
        patch.object(collectives, "_reduce", watched("send back", reduce)),
        patch.object(collectives.Exchange, "arrivals", watched("arrive", arrivals)),
    ):
        sharded.attend(SimpleNamespace(layer_idx=0), *leaves, None).sum().backward()
    return events


def test_messages_of_late_segments_overlap_with_the_attention_of_the_early_one(tmp_path):
    forward = ["send", "send", "arrive", "attend", "arrive", "attend"]
    backward = ["attend backward", "send back", "attend backward", "send back", "arrive", "arrive"]
    for events in on_ranks(2, events_of_an_attention, tmp_path=tmp_path):
        assert events == ["send", *forward, *backward]  # the first message holds the ranges of the next chunks


def test_a_layer_under_ulysses_names_its_flash_attention(monkeypatch):
    """transformers looks up the flash attention to call in the layer's configuration."""
    model, names = make_model(), []

    def flash_attention(module, q_BHND, *_, **__):
        names.append(module.config._attn_implementation)
        return q_BHND.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)
    monkeypatch.setattr(SequenceGroup, "all_to_all", lambda group, x: x)
    Ulysses(Vanilla("flash_attention_2"), model.config, 16, SequenceGroup(0, 1)).install(model)
    model(torch.arange(16).unsqueeze(0), use_cache=False)
    assert names == ["flash_attention_2"] * model.config.num_hidden_layers


LAYOUTS = [(chunks, size, zigzag) for chunks in range(1, 20) for size in range(1, chunks + 1) for zigzag in (0, 1)]


@pytest.mark.parametrize("tail", [0, 3])
def test_each_token_is_on_one_rank_and_each_rank_has_a_chunk(tail):
    for chunks, size, zigzag in LAYOUTS:
        layout = ContextLayout(2 + 4 * chunks + tail, LagRule(2, 4, 2), size, bool(zigzag))
        positions = [layout.positions(rank) for rank in range(size)]
        assert sorted(torch.cat(positions).tolist()) == list(range(layout.num_tokens))
        assert all(sum(len(s.chunks) for s in layout.of_rank(rank)) >= 1 for rank in range(size))
        assert sum(segment.scored for segment in layout.segments) == chunks - 1


@pytest.mark.parametrize(("num_tokens", "size"), [(32768, 4), (131072, 8)])
def test_zigzag_balances_the_work(num_tokens, size):
    """The ratio of the largest to the mean number of query-key pairs of a rank, counted query by query."""
    mode = LRSA()
    rule = mode.rule()

    def imbalance(zigzag: bool) -> float:
        layout = ContextLayout(num_tokens, rule, size, zigzag)
        pairs = []
        for rank in range(size):
            chunk = (layout.positions(rank) - rule.sink_size).div(rule.lag_size, rounding_mode="floor").clamp(0)
            previous = (chunk - 1).clamp(0)
            begin = rule.sink_size + previous * rule.lag_size
            pairs.append(float((previous * rule.kept + layout.positions(rank) - begin).sum()))
        return max(pairs) / (sum(pairs) / size)

    assert imbalance(zigzag=False) > 1.35
    assert imbalance(zigzag=True) < 1.05


def test_a_compressed_cache_is_refused_while_ranks_hold_segments():
    """The cache looks for the rule of the installed attention. Context parallelism has one, but takes no cache."""
    model, mode = make_model(), lrsa()
    mode.install(model)
    ContextParallel(mode, model.config, 69, SequenceGroup(0, 2)).install(model)
    with pytest.raises(InputError, match="is not installed in the model"):
        model(torch.zeros(1, 69, dtype=torch.long), past_key_values=mode.make_cache(model.config))
