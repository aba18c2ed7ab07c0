"""vLLM's server on loopback, as `lrsa serve` starts it, under requests that come at once."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.error import URLError

import pytest
import torch

from lrsa_lightning import LRSA, generate
from tests.conftest import make_model
from tests.serving.vllm.engines import own_process

pytest.importorskip("vllm")
MODE = LRSA(lag_size=64, sink_size=16, retention_ratio=0.5)
LENGTHS = (20, 150, 333, 480, 700, 90, 256, 601)
NEW = 24
START_S, ANSWER_S = 400, 120
SIZES = {"hidden_size": 128, "intermediate_size": 128, "max_position_embeddings": 2048}
# Room for 48 blocks of 32 tokens: fewer than the requests need together without compression.
OPTIONS = ("--max-model-len", "1024", "--enforce-eager", "--dtype", "float32", "--kv-cache-memory-bytes", "1600000")


@pytest.fixture(scope="module")
def model():
    return make_model(vocab_size=400, **SIZES)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("served") / "model"
    with LRSA(lag_size=64, sink_size=16, retention_ratio=1.0).installed(model):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """The address of a server that keeps half, of a folder that keeps everything."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    line = [sys.executable, "-m", "lrsa_lightning", "serve", folder, "--retention_ratio", "0.5", *OPTIONS]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as written:
        started = subprocess.Popen(
            [*line, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"],
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**own_process(), "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"},
        )
    try:
        until = time.monotonic() + START_S
        while not answers(address):
            is_coming = started.poll() is None and time.monotonic() < until
            assert is_coming, log.read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(20)
        started.kill()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except (URLError, OSError):
        return False


def post(address: str, path: str, **body):
    request = urllib.request.Request(
        f"{address}/v1/{path}", json.dumps({"model": "m", **body}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return json.load(answer)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in LENGTHS]


def completed(address: str, prompt: list[int]) -> list[int]:
    options = {"max_tokens": NEW, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    (choice,) = post(address, "completions", prompt=prompt, **options)["choices"]
    return choice["token_ids"]


def test_requests_that_come_at_once_get_the_tokens_of_generate(server, model):
    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        got = list(pool.map(lambda prompt: completed(server, prompt), prompts()))
    expected = [generate(model, torch.tensor([prompt]), MODE, NEW)[0].tolist() for prompt in prompts()]
    assert got == expected
    dense = [generate(model, torch.tensor([prompt]), LRSA(retention_ratio=1), NEW)[0].tolist() for prompt in prompts()]
    assert sum(first != second for first, second in zip(got, dense, strict=True)) >= 4
    metrics = urllib.request.urlopen(f"{server}/metrics", timeout=ANSWER_S).read().decode()
    counts = {line.partition("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if "{" in line}
    assert counts["vllm:num_requests_running"] == counts["vllm:kv_cache_usage_perc"] == 0  # all blocks are back


def test_a_chat_has_turns_and_streams(server, model, tokenizer):
    turns = [{"role": "user", "content": "The grass is green. " * 40}]
    answer = post(server, "chat/completions", messages=turns, max_tokens=8, temperature=0, return_token_ids=True)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert answer["prompt_token_ids"] == ids
    expected = generate(model, torch.tensor([ids]), MODE, 8)[0].tolist()
    got = answer["choices"][0]["token_ids"]
    assert got == expected[: len(got)]
    turns += [answer["choices"][0]["message"], {"role": "user", "content": "Is it?"}]
    request = {"messages": turns, "max_tokens": 8, "temperature": 0, "stream": True, "model": "m"}
    sent = urllib.request.Request(f"{server}/v1/chat/completions", json.dumps(request).encode())
    sent.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(sent, timeout=ANSWER_S) as lines:
        assert sum(line.startswith(b"data: ") for line in lines) > 2
