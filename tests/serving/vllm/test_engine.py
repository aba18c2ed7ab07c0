"""The plug-in in vLLM's engine: memory that is given back, preemption, metrics, other models beside it."""

import subprocess
import sys

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from tests.serving.vllm import engines
from tests.serving.vllm.engines import answers, core_of, expected, make_prompts, metric, pool_of, serve, tiny_model
from tests.serving.vllm.engines import write_folder as write

pytest.importorskip("vllm", reason="make test-serve runs these in a venv with vLLM")
pytestmark = pytest.mark.vllm

MODE = LRSA(lag_size=128, sink_size=16)
REACH = 16 + 9 * 256 + 10  # 9 lags of 256, and a few tokens


@pytest.fixture(scope="module", autouse=True)
def _process():
    engines.prepare_process()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def llm(model, tmp_path_factory):
    return serve(write(tmp_path_factory.mktemp("folder"), model, MODE), enable_prefix_caching=True)


def test_turns_of_a_conversation(llm, model):
    history = make_prompts([500])[0]
    for turn in make_prompts([37, 150, 1], seed=2):
        history = history + turn
        answer = answers(llm, [history])[0]
        assert answer == expected(model, MODE, [history])[0]
        history += answer


def test_prefix_caching_is_off(llm):
    prompts = make_prompts([600])
    first, second = (engines.outputs(llm, prompts)[0].token_ids for _ in range(2))
    assert first == second
    assert metric(llm, "vllm:prefix_cache_hits") == 0


def test_logprobs(llm, model):
    prompt = make_prompts([700])[0]
    output = engines.outputs(llm, [prompt], logprobs=3)[0]
    ids = torch.tensor([[*prompt, *output.token_ids]])
    with MODE.installed(model), torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    wanted = logits.log_softmax(dim=-1)
    for row, step in zip(wanted, output.logprobs, strict=True):
        for token, logprob in step.items():
            assert logprob.logprob == pytest.approx(float(row[token]), abs=1e-3)


def test_usage_is_what_the_rule_holds(llm):
    """While requests decode, the blocks in use are those of the sink, the kept tokens and the raw ones."""
    lengths = [900, 300, 1500]
    engines.start(llm, make_prompts(lengths), 30)
    engine, requests = llm.llm_engine, core_of(llm).scheduler.requests
    while not all(request.num_output_tokens >= 10 for request in requests.values()) or len(requests) < 3:
        engine.step()
    held = []
    for request in requests.values():
        # Blocks are given back when a request is scheduled: one token has been added since.
        seen = request.num_computed_tokens
        held.append(-(-MODE.rule().stored_len(seen - 2) // 32) * 32)
    block_size, pool = core_of(llm).vllm_config.cache_config.block_size, pool_of(llm)
    in_use = (pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) * block_size
    assert sum(held) <= in_use <= sum(held) + len(held) * block_size
    assert in_use < 0.7 * sum(lengths)
    assert metric(llm, "vllm:kv_cache_usage_perc") == pytest.approx(in_use / block_size / (pool.num_gpu_blocks - 1))
    while engine.has_unfinished_requests():
        engine.step()
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def test_preemption(model, tmp_path, monkeypatch):
    """Requests that lose their blocks start again, and answer the same."""
    prompts = make_prompts([200, 180, 190, 210, 170, 205])
    llm = serve(write(tmp_path, model, MODE), num_gpu_blocks_override=45, block_size=32)
    engines.poison_freed_blocks(llm, monkeypatch)
    assert answers(llm, prompts, 400) == expected(model, MODE, prompts, 400)
    assert metric(llm, "vllm:num_preemptions") >= 2
    assert pool_of(llm).get_num_free_blocks() == 44


def test_a_dense_model_beside_it(llm, model, tmp_path):
    """Two engines in one process: the dense one answers as ever, and so does the compressed one afterwards."""
    prompts = make_prompts([600, 450])
    dense = serve(write(tmp_path, model, None))
    assert answers(dense, prompts) == expected(model, Vanilla(), prompts)
    layers = core_of(dense).vllm_config.compilation_config.static_forward_context.values()
    assert {type(layer).__module__.split(".")[0] for layer in layers} == {"vllm"}
    assert answers(llm, prompts) == expected(model, MODE, prompts)


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_the_ratio_can_differ_at_launch(ratio, model, tmp_path):
    prompts = make_prompts([600, 450])
    changed = {"lrsa": {"retention_ratio": ratio}}
    llm = serve(write(tmp_path, model, MODE), additional_config=changed)
    assert answers(llm, prompts) == expected(model, LRSA(lag_size=128, sink_size=16, **changed["lrsa"]), prompts)


def test_capacity(model, tmp_path):
    """Requests that run before one is preempted, in the same memory as a dense model."""
    running = {}
    for name, ratio in {"dense": None, "half": 0.5, "quarter": 0.25}.items():
        mode = ratio and LRSA(lag_size=256, sink_size=16, retention_ratio=ratio)
        options = {"num_gpu_blocks_override": 600, "block_size": 32, "max_num_seqs": 64, "max_model_len": REACH + 120}
        running[name] = _most_running(serve(write(tmp_path / name, model, mode), **options))
    assert running["half"] >= 1.6 * running["dense"]
    assert running["quarter"] >= 2.5 * running["dense"]


def _most_running(llm) -> int:
    engines.start(llm, make_prompts([REACH] * 24), 120)
    scheduler, most = core_of(llm).scheduler, 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        if any(request.num_preemptions for request in scheduler.requests.values()):
            break
        most = max(most, len(scheduler.running))
    return most


REFUSED = {
    "--block-size 96": {"block_size": 96},
    "--kv-cache-dtype": {"kv_cache_dtype": "fp8"},
    "--pipeline-parallel-size": {"pipeline_parallel_size": 2},
    "--speculative-config": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    },
    "--kv-transfer-config": {
        "kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"},
    },
    "only retention_ratio can differ": {"additional_config": {"lrsa": {"sink_size": 4}}},
    "config.json names a rule under 'lrsa', but the architecture Qwen2ForCausalLM": {
        "hf_overrides": {"architectures": ["Qwen2ForCausalLM"]},
    },
    "keeps 38 of 128": {"additional_config": {"lrsa": {"retention_ratio": 0.3}}},
}


@pytest.mark.parametrize(("reason", "options"), REFUSED.items(), ids=REFUSED.keys())
def test_refusals_come_before_the_weights(reason, options, model, tmp_path):
    folder = write(tmp_path, model, MODE)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"LRSA: {reason}|{reason}"):
        serve(folder, **options)


def test_vllm_alone_refuses_the_folder(model, tmp_path):
    """Without the plug-in nothing runs dense in silence."""
    folder = write(tmp_path, model, MODE)
    code = f"from tests.serving.vllm import engines; engines.prepare_process(); engines.serve({str(folder)!r})"
    command = [sys.executable, "-c", f"import os; os.environ['VLLM_PLUGINS'] = ''; {code}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "LrsaQwen2ForCausalLM" in result.stderr
    assert "not supported" in result.stderr
