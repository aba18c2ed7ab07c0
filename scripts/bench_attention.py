"""Times LRSA, selection included, against dense attention on a CUDA GPU, and prints a Markdown table.

Shapes of Qwen2.5-1.5B (12 query heads, 2 KV heads, D = 128), batch 1, bf16, S = 16. Each figure is the median over
batches of back-to-back calls: as in a training step, the host runs ahead of the device.
Usage: python scripts/bench_attention.py [--lengths 8192 32768 131072] [--ratios 0.5 0.25]
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, flex, lagkv
from lrsa_lightning.attention.layout import TILE, KVLayout
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import PositiveInt, PositiveUnitInterval
from lrsa_lightning.versions import versions

HEADS, KV_HEADS, DIM, SINK = 12, 2, 128, 16


def milliseconds(call: Callable[[], object], calls: int) -> float:
    """Median over five batches of the time per call, of ``calls`` back-to-back calls."""
    for _ in range(3):
        call()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph, to time kernels without their launches."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def dense(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def dense_fa4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.cute import flash_attn_func

    out = flash_attn_func(*(z.transpose(1, 2) for z in (q, k, v)), causal=True)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def random_qkv(num_tokens: int) -> list[Tensor]:
    """[1, H or G, N, D] each, in memory [1, N, H or G, D] as the model's projections leave them."""
    return [
        torch.randn(1, num_tokens, heads, DIM, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def rows(num_tokens: int, lag_size: int, ratios: list[float]) -> Iterator[tuple[str, Callable, float | None]]:
    """Name, attention function and arithmetic speed-up limit over dense attention, for each line of the table."""
    has_fa4 = flex.pick_kernel(torch.empty(1, 1, 1, DIM, device="cuda", dtype=torch.bfloat16)) == "FLASH"
    if has_fa4:
        yield "dense FlashAttention-4", dense_fa4, None
    yield "dense cuDNN SDPA", partial(dense, SDPBackend.CUDNN_ATTENTION), None
    yield "dense FlashAttention-2 SDPA", partial(dense, SDPBackend.FLASH_ATTENTION), None
    for ratio in ratios:
        mode = LRSA(lag_size=lag_size, retention_ratio=ratio, sink_size=SINK)
        limit = causal_over_sparse_tiles(num_tokens, mode.rule())
        name = f"LRSA r={ratio:g}"
        for kernel in ("FLASH", "TRITON") if has_fa4 else ("TRITON",):
            yield f"{name} flex {kernel}", partial(flex.lrsa_attention, mode_or_rule=mode, kernel=kernel), limit
        if num_tokens <= 32768:
            yield f"{name} fill", partial(fill.lrsa_attention, mode_or_rule=mode), limit


def causal_over_sparse_tiles(num_tokens: int, rule: LagRule) -> float:
    """Speed-up over dense causal attention that the tiles allow: tiles of the causal mask over those of the rule."""
    seen, _ = KVLayout.of_sequence(rule, num_tokens, TILE).tiles()
    rows = seen.shape[0]
    return rows * (rows + 1) / 2 / int(seen.sum())


def measure(attention: Callable, q: Tensor, k: Tensor, v: Tensor, calls: int) -> tuple[float, float, float]:
    """Milliseconds of forward, of forward and backward, and peak GiB beyond inputs, output and gradients."""
    grad_out = torch.randn_like(q)
    with torch.no_grad():
        forward = milliseconds(lambda: attention(q, k, v), calls)

    def both():
        return torch.autograd.grad(attention(q, k, v), (q, k, v), grad_out)

    both()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    results = q.nbytes + sum(z.nbytes for z in (q, k, v))
    peak = (torch.cuda.max_memory_allocated() - before - results) / 2**30
    return forward, milliseconds(both, calls), peak


def report(num_tokens: int, ratios: list[float], wanted: str) -> None:
    """Prints the table of one length, with the rows whose name matches ``wanted``."""
    lag_size = 256 if num_tokens <= 8192 else 1024
    calls = max(2, min(20, 2**19 // num_tokens))
    torch.manual_seed(0)
    q, k, v = (z.requires_grad_() for z in random_qkv(num_tokens))
    print(f"\n{num_tokens} tokens, L = {lag_size}\n")
    print("| | forward ms | forward + backward ms | against fastest dense | of the tile limit | peak extra GiB |")
    print("|---|---|---|---|---|---|")
    fastest = float("inf")
    for name, attention, limit in rows(num_tokens, lag_size, ratios):
        if not re.search(wanted, name):
            continue
        forward, both, peak = measure(attention, q, k, v, calls)
        if limit is None:
            fastest = min(fastest, both)
        reached = f"{fastest / both / limit:.0%} of {limit:.2f}x" if limit else ""
        print(f"| {name} | {forward:.2f} | {both:.2f} | {fastest / both:.2f}x | {reached} | {peak:.2f} |", flush=True)
    for ratio in ratios:
        report_selection(k.detach(), v.detach(), LRSA(lag_size=lag_size, retention_ratio=ratio, sink_size=SINK))


def report_selection(k: Tensor, v: Tensor, mode: LRSA) -> None:
    """Prints the time of the selection alone, and of the block mask, which is built once per shape."""
    from lrsa_lightning.attention import kernels

    rule, num_tokens = mode.rule(), k.shape[2]
    idx, _ = kernels.select(k, v, rule)
    reference = lagkv.select(k, v, mode.lag_size, SINK, mode.retention_ratio)
    fused = milliseconds(captured(lambda: kernels.select(k, v, rule)), 20)
    flex.block_mask.cache_clear()
    started = time.perf_counter()
    flex.block_mask(KVLayout.of_sequence(rule, num_tokens, TILE), k.device)
    build = 1000 * (time.perf_counter() - started)
    differing = float((idx != reference).float().mean())
    print(
        f"\nr={mode.retention_ratio:g}: selection alone {fused:.3f} ms, {differing:.4%} of its indices differ from the "
        f"reference; block mask built in {build:.1f} ms"
    )


def print_versions(*settings: str) -> None:
    software = (f"{name} {number}" for name, number in versions().items())
    print(f"{torch.cuda.get_device_name()}; {', '.join([*settings, *software])}")


@report_input_errors
def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--ratios", type=PositiveUnitInterval, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--rows", default="", help="regular expression for the rows to measure; default: all")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU")
    print_versions()
    for num_tokens in options.lengths:
        report(num_tokens, options.ratios, options.rows)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
