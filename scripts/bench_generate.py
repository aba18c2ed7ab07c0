"""Times prefill and decoding of a Qwen2.5-1.5B shape with random weights on a CUDA GPU, and prints Markdown tables.

The first table is one layer's attention and cache over a complete prompt: `LagKVCache` against dense FlashAttention-4
and a cache that keeps everything. The second is the model: milliseconds per new token and bytes of the cache.
Usage: python scripts/bench_generate.py [--lengths 32768 131072] [--ratios 0.5 0.25]
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from bench_attention import HEADS, KV_HEADS, dense_fa4, milliseconds, print_versions, random_qkv
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Cache, DynamicCache, Qwen2Config

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.command_line import ScriptParser
from lrsa_lightning.input_boundary import report_input_errors
from lrsa_lightning.ranges import PositiveInt, PositiveUnitInterval

LAYERS, VOCABULARY = 28, 151936


def shape(max_length: int, num_layers: int = LAYERS, rope_theta: float = 1e6) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=num_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=max_length + 1024,
        rope_theta=rope_theta,
        tie_word_embeddings=True,
    )


def dense_prefill(config: Qwen2Config, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_fa4(q, *DynamicCache(config=config).update(k, v, 0))


def lrsa_prefill(mode: LRSA, config: Qwen2Config, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    cache = mode.make_cache(config)
    k, v = cache.update(k, v, 0)
    return mode.execution.attend_cached(q, k, v, cache.layers[0].view.layout)


@torch.no_grad()
def report_prefill(num_tokens: int, ratios: list[float]) -> None:
    """Prints the table of one layer's attention over a complete prompt."""
    config, qkv = shape(num_tokens), random_qkv(num_tokens)
    calls = max(2, 2**19 // num_tokens)
    dense = milliseconds(lambda: dense_prefill(config, *qkv), calls)
    print(f"\nPrefill of {num_tokens} tokens, one layer's attention with its cache\n")
    print("| | ms | against dense FlashAttention-4 |")
    print("|---|---|---|")
    print(f"| dense FlashAttention-4, DynamicCache | {dense:.2f} | 1.00x |")
    for ratio in ratios:
        time_ms = milliseconds(partial(lrsa_prefill, LRSA(retention_ratio=ratio), config, *qkv), calls)
        print(f"| LRSA r={ratio:g}, LagKVCache | {time_ms:.2f} | {dense / time_ms:.2f}x |", flush=True)


@torch.no_grad()
def feed(model, cache: Cache, ids: Tensor) -> None:
    """Runs the model on the next tokens of the sequence in the cache, with the choice of one more."""
    seen = cache.get_seq_length()
    positions = torch.arange(seen, seen + ids.shape[1], device=ids.device).unsqueeze(0)
    hidden = model.get_decoder()(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    model.get_output_embeddings()(hidden.last_hidden_state[:, -1:]).argmax(dim=-1)


def decode(model, mode: AttentionMode, prompt: Tensor, num_tokens: int) -> tuple[float, float, float, int]:
    """Seconds of the prefill, milliseconds of a decoding step and of its GPU kernels, and bytes of the cache."""
    with mode.installed(model):
        cache, token = mode.make_cache(model.config), prompt[:, :1]
        prefill = seconds(lambda: feed(model, cache, prompt))
        held = cache_bytes(cache)
        feed(model, cache, token)
        steps = seconds(lambda: [feed(model, cache, token) for _ in range(num_tokens)])
        with profile(activities=[ProfilerActivity.CUDA]) as kernels:
            seconds(lambda: [feed(model, cache, token) for _ in range(4)])
    busy = sum(event.self_device_time_total for event in kernels.key_averages()) / 1000 / 4
    return prefill, 1000 * steps / num_tokens, busy, held


def seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def report_decoding(num_tokens: int, ratios: list[float], new_tokens: int) -> None:
    """Prints the table of the complete model."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape(num_tokens), dtype=torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (1, num_tokens), device="cuda")
    print(f"\n{num_tokens} prompt tokens, {new_tokens} new ones, {LAYERS} layers\n")
    print("| | prefill s | ms per new token | GPU kernels in it | cache MiB | cache against dense |")
    print("|---|---|---|---|---|---|")
    dense_bytes = None
    modes = {"dense": Vanilla(), **{f"LRSA r={r:g}": LRSA(retention_ratio=r) for r in ratios}}
    for name, mode in modes.items():
        decode(model, mode, prompt, new_tokens)  # compiles everything, also what runs when a chunk is complete
        prefill, step, busy, held = decode(model, mode, prompt, new_tokens)
        dense_bytes = dense_bytes or held
        sizes = f"{held / 2**20:.0f} | {held / dense_bytes:.3f}"
        print(f"| {name} | {prefill:.2f} | {step:.1f} | {busy:.2f} | {sizes} |", flush=True)


@report_input_errors
def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[32768, 131072])
    parser.add_argument("--ratios", type=PositiveUnitInterval, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--new-tokens", type=PositiveInt, default=64)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU")
    print_versions()
    for num_tokens in options.lengths:
        report_prefill(num_tokens, options.ratios)
        report_decoding(num_tokens, options.ratios, options.new_tokens)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
