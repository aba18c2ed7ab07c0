"""vLLM's tokens under the plug-in are those of `lrsa_lightning.generate`."""

import pytest

from lrsa_lightning import LRSA, Vanilla
from tests.serving.vllm import engines
from tests.serving.vllm.engines import LAG, answers, expected, make_prompts, pool_of, serve, tiny_model, write_folder

pytest.importorskip("vllm", reason="make test-serve runs these in a venv with vLLM")
pytestmark = pytest.mark.vllm

# Architecture, settings of the rule, options of vLLM: each value with several of the others.
CASES = {
    "the usual sink": ("qwen2", {"sink_size": 16}, {}),
    "steps shorter than a chunk": ("qwen2", {"retention_ratio": 0.25, "sink_size": 0}, {"max_num_batched_tokens": 100}),
    "a prompt in one step": ("qwen3", {"sink_size": 1}, {"max_num_batched_tokens": 2048, "block_size": 32}),
    "a sink of several blocks": ("llama", {"retention_ratio": 0.25, "sink_size": 72}, {"max_num_batched_tokens": 200}),
    "a sink that fills blocks": ("qwen3", {"retention_ratio": 0.75, "sink_size": 32}, {"max_num_batched_tokens": 300}),
    "a sink longer than a chunk": ("llama", {"sink_size": 200}, {"max_num_batched_tokens": 137, "block_size": 32}),
    "window": ("qwen2", {"scorer": "window", "sink_size": 32}, {"max_num_batched_tokens": 300, "block_size": 32}),
    "window, odd sink": ("qwen2", {"scorer": "window", "sink_size": 17}, {"block_size": 64}),
    "random": ("qwen3", {"scorer": "random", "seed": 3}, {"max_num_batched_tokens": 400}),
    "key_norm": ("llama", {"scorer": "key_norm", "retention_ratio": 0.25, "sink_size": 33}, {}),
    "values weigh more": ("qwen2", {"v_weight": 2.5, "sink_size": 16}, {"max_num_batched_tokens": 129}),
    "skipped layer": ("qwen2", {"skip_layers": [0]}, {"max_num_batched_tokens": 300}),
    "one request at a time": ("qwen2", {}, {"max_num_seqs": 1, "max_num_batched_tokens": 144}),
}


def lengths_of(mode: LRSA) -> list[int]:
    """Around the boundaries of chunks; some cross another one while they decode."""
    first = mode.sink_size + 2 * LAG
    return [first - 1, first, first + 1, first + LAG, 940, first + 3 * LAG - 9, 64, first + LAG - 1]


@pytest.mark.parametrize(("model_type", "settings", "options"), CASES.values(), ids=CASES.keys())
def test_tokens(model_type, settings, options, tmp_path, monkeypatch):
    engines.prepare_process()
    model, mode = tiny_model(model_type), LRSA(**{"lag_size": LAG, **settings})
    prompts = make_prompts(lengths_of(mode))
    wanted = expected(model, mode, prompts)
    assert wanted != expected(model, Vanilla(), prompts)
    llm = serve(write_folder(tmp_path, model, mode), **options)
    free = pool_of(llm).get_num_free_blocks()
    poisoned = engines.poison_freed_blocks(llm, monkeypatch)
    assert answers(llm, prompts) == wanted
    assert poisoned
    assert pool_of(llm).get_num_free_blocks() == free
