"""Decoding on a GPU: the kernels against the CPU's operators, CUDA graphs on against off."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.generation import Prompt
from tests.attention.test_decode_kernels import steps
from tests.conftest import make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LENGTHS = [700, 130, 457]
MODES = {
    "r=0.5": LRSA(lag_size=64, sink_size=4),
    "r=0.25, a skipped layer": LRSA(lag_size=64, sink_size=4, retention_ratio=0.25, skip_layers=[1]),
    "window": LRSA(lag_size=32, sink_size=16, scorer="window"),
    "random": LRSA(lag_size=64, sink_size=4, scorer="random"),
    "dense": Vanilla(),
}


def prompt_of(mode, device: str, lengths=LENGTHS, dtype=torch.float32, new_tokens: int = 200) -> Prompt:
    ids = torch.randint(0, 97, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    model = make_model(hidden_size=96, head_dim=32, num_attention_heads=6, num_key_value_heads=2)
    model = model.to(device, dtype)
    return Prompt(model, ids.to(device), lengths, mode.for_length(max(lengths) + new_tokens), num_pieces=3)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("lengths", [LENGTHS, [300], [300, 300]], ids=str)
def test_a_gpu_decodes_what_the_cpu_decodes_with_and_without_graphs(mode, lengths):
    tokens = prompt_of(mode, "cpu", lengths).decode(150)
    for replays in (False, True):
        prompt = prompt_of(mode, "cuda", lengths)
        prompt._step.can_replay &= replays
        got = prompt.decode(150).cpu()
        # Rounding decides between equals: a row may go its own way at last.
        assert (got == tokens).float().mean() > 0.95
        assert prompt._step.uses_graph is (replays and mode is not MODES["random"])
        counts = prompt.cache.counts
        assert counts.seen_B.tolist() == counts.device_seen_B.tolist() == [length + 149 for length in lengths]


@pytest.mark.parametrize("mode", [mode for name, mode in MODES.items() if name != "random"], ids=repr)
def test_graphs_give_the_same_bits(mode):
    caches, tokens = [], []
    for replays in (False, True):
        prompt = prompt_of(mode, "cuda", dtype=torch.bfloat16)
        prompt._step.can_replay = replays
        tokens.append(prompt.decode(150))
        caches.append(prompt.cache)
    assert torch.equal(*tokens)
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_storage_that_grows_gets_a_new_graph():
    ids = torch.randint(0, 97, (2, 300), device="cuda")
    model, tokens = make_model(hidden_size=64, head_dim=32, num_attention_heads=2, num_key_value_heads=1).cuda(), []
    for mode in (MODES["r=0.5"], MODES["r=0.5"].for_length(1300)):
        tokens.append(Prompt(model, ids, [300, 300], mode).decode(900))
    assert torch.equal(*tokens)


def test_a_replayed_step_does_not_wait_for_the_device():
    prompt = prompt_of(MODES["r=0.5"], "cuda")
    prompt.decode(3, early_end=False)
    token_B = torch.zeros(len(LENGTHS), dtype=torch.int64, device="cuda")
    with prompt._mode.installed(prompt._model):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(70):
                prompt._step(token_B)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("groups", "shared", "dim", "dtype"),
    [(2, 6, 128, torch.bfloat16), (4, 1, 64, torch.float32), (1, 8, 256, torch.float16)],
)
def test_kernels_equal_torch_at_every_position_of_a_chunk(groups, shared, dim, dtype):
    sizes = MODES["r=0.5"].rule()
    results = steps(sizes, [195, 196, 131, 5], groups, shared, dim, dtype, 70, "cuda")
    for outputs, storages in results:
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-4 if dtype == torch.float32 else 2e-2)
        assert torch.equal(*storages)
