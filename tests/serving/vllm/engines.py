"""Tiny models served by vLLM in this process, and what they must answer."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention.saved_mode import save_mode
from tests.conftest import make_model

LAG = 128
NEW_TOKENS = 40
# Heads of 32, the smallest that vLLM has on CPUs.
SIZES = {"hidden_size": 128, "intermediate_size": 128, "max_position_embeddings": 4096, "eos_token_id": None}


# An engine in this process that is collected takes the process groups of all others with it.
_ALIVE = []


def prepare_process() -> None:
    """Settings that vLLM reads when it is imported: one process, no logs, no network."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **quiet})


def own_process() -> dict[str, str]:
    """The environment of a program that starts vLLM's usual processes."""
    return {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}


def tiny_model(model_type: str = "qwen2"):
    """A model of two layers whose attention matters."""
    heads = {"head_dim": 32} if model_type == "qwen3" else {}
    return make_model(model_type, vocab_size=199, **SIZES, **heads)


def write_folder(folder: Path, model, mode: LRSA | None) -> Path:
    """The folder as an export leaves it: its architecture has the mark of a rule."""
    save_mode(model.config, mode)
    model.save_pretrained(folder)
    save_mode(model.config, None)
    return folder


def serve(folder: Path, **options):
    """vLLM's engine of a folder."""
    from vllm import LLM

    usual = {"max_model_len": 2048, "max_num_batched_tokens": 512, "max_num_seqs": 16, "kv_cache_memory_bytes": 2**25}
    fixed = {"skip_tokenizer_init": True, "dtype": "float32", "enforce_eager": True, "disable_log_stats": False}
    _ALIVE.append(LLM(str(folder), **{**fixed, **usual, **options}))
    return _ALIVE[-1]


def answers(llm, prompts: Sequence[list[int]], num_tokens: int = NEW_TOKENS, **sampling) -> list[list[int]]:
    """Greedy continuations of a continuous batch."""
    return [[*output.token_ids] for output in outputs(llm, prompts, num_tokens, **sampling)]


def outputs(llm, prompts: Sequence[list[int]], num_tokens: int = NEW_TOKENS, **sampling):
    """vLLM's own outputs."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, **sampling)
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [result.outputs[0] for result in llm.generate(requests, greedy, use_tqdm=False)]


def expected(
    model, mode: LRSA | Vanilla, prompts: Sequence[list[int]], num_tokens: int = NEW_TOKENS
) -> list[list[int]]:
    """What `lrsa_lightning.generate` answers."""
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    return generate(model, ids, mode, num_tokens, lengths=lengths, prefill_chunk_size=512).tolist()


def make_prompts(lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    """Random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 199, (length,), generator=generator).tolist() for length in lengths]


def start(llm, prompts: Sequence[list[int]], num_tokens: int) -> None:
    """Adds requests without running them: `step` does."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    for number, prompt in enumerate(prompts):
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, greedy)


def metric(llm, name: str) -> float:
    """A metric of vLLM of this engine."""
    folder = core_of(llm).vllm_config.model_config.model
    return next(m.value for m in llm.get_metrics() if m.name == name and m.labels["model_name"] == folder)


def core_of(llm):
    """The engine's core, in this process."""
    return llm.llm_engine.engine_core.engine_core


def pool_of(llm):
    """The pool of the KV cache's blocks."""
    return core_of(llm).scheduler.kv_cache_manager.block_pool


def caches_of(llm) -> list[Tensor]:
    """The KV cache of each layer, [blocks, ...]."""
    layers = core_of(llm).vllm_config.compilation_config.static_forward_context.values()
    return [layer.kv_cache for layer in layers]


def poison_freed_blocks(llm, monkeypatch) -> list[int]:
    """Overwrites blocks with large numbers when they are given back. Returns their ids, as they come."""
    pool, poisoned = pool_of(llm), []
    free = pool.free_blocks

    def free_and_poison(blocks):
        blocks = [*blocks]
        free(blocks)
        ids = [block.block_id for block in blocks if not block.is_null and block.ref_cnt == 0]
        poisoned.extend(ids)
        for cache in caches_of(llm):
            cache[ids] = 1e4

    monkeypatch.setattr(pool, "free_blocks", free_and_poison)
    return poisoned
