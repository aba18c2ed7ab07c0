"""The bench of prefill and decoding: its figures by hand, and a run on the CPU."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
LENGTH, WARMUP, NEW = 200, 2, 6
# Keys and values of a token: 2 layers, 2 KV heads, D = 8, bfloat16.
A_TOKEN = 2 * 2 * 2 * 8 * 2


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of scripts/bench/."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: importlib.import_module(f"bench.{name}")


def run(*options: str, cwd: Path) -> tuple[str, dict[str, dict]]:
    """What it prints, and the rows of its JSON file by name."""
    tiny = ["--lengths", str(LENGTH), "--model", "tiny", "--lag", "32", "--ratios", "0.5", "--row-timeout", "100"]
    tokens = ["--warmup", str(WARMUP), "--new-tokens", str(NEW), "--prefill-tokens", "300"]
    command = [sys.executable, SCRIPTS / "bench_generate.py", *tiny, *tokens, "--json", "rows.json", *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, env=one_thread)
    assert result.returncode == 0, result.stderr
    return result.stdout, {row["row"]: row for row in json.loads((cwd / "rows.json").read_text())["rows"]}


def test_ours_and_transformers_on_the_cpu(tmp_path):
    printed, rows = run("--batches", "1", "2", "--memory", "0.01", cwd=tmp_path)
    names = ["transformers DynamicCache", "transformers StaticCache, compiled", "dense", "LRSA r=0.5"]
    last = LENGTH + WARMUP + NEW
    sparse = 16 + 5 * 16 + (last - 16 - 5 * 32)  # S = 16; 6 chunks of 32 are complete, 5 of them compressed to 16
    for batch in (1, 2):
        of_batch = [rows[f"{name}, batch {batch}, {LENGTH} tokens"] for name in names]
        held = [row["held_bytes"] / A_TOKEN / batch for row in of_batch]
        assert held == [last, last + 4, last, sparse]  # StaticCache: also the tokens that only a GPU profiles
        assert [row["dense_bytes"] / A_TOKEN / batch for row in of_batch] == [last] * 4
        assert all(len(row["ms"]) == NEW and row["prefill_s"] > 0 for row in of_batch)
        assert all(row["mean_ms"] >= sum(row["ms"]) / NEW for row in of_batch)
    assert re.search(rf"\| LRSA r=0.5 \| \d+\.\d\d \| \d+\.\d\d \|  \|  \| 0 \| {sparse / last:.3f} \|", printed)
    assert rows[f"one layer's prefill, {LENGTH} tokens"]["failed"] == "needs a Hopper GPU and flash-attn-4"
    dense, lrsa = (rows[f"{name}, longest context"]["longest_tokens"] for name in ("dense", "LRSA r=0.5"))
    assert f"| LRSA r=0.5 | {lrsa} |" in printed
    assert lrsa == pytest.approx(2 * dense, rel=0.01)
    assert 0.97 < (dense * A_TOKEN) / (0.01 * 2**30) < 1


@pytest.mark.slow
def test_a_row_that_fails_does_not_end_the_others(tmp_path):
    """LRSA refuses RoPE that depends on the length; full attention goes on with transformers' own cache."""
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}
    model = json.dumps(tiny | heads | rope)
    printed, rows = run("--batches", "1", "--rows", "^LRSA|dense", "--longest", "no", "--model", model, cwd=tmp_path)
    dense, lrsa = rows.values()
    assert "dynamic" in lrsa["failed"]
    assert f"| LRSA r=0.5 | {lrsa['failed']} |" in printed
    assert dense["held_bytes"] == dense["dense_bytes"]


def test_the_longest_context_is_the_last_that_fits(bench):
    longest = bench("longest").longest
    for limit in (1, 2, 3, 1000, 4096, 12345):
        asked = []
        assert longest(lambda tokens: asked.append(tokens) or tokens <= limit * 1024) == limit * 1024  # noqa: B023
        assert len(asked) < 40


def test_prompts_too_large_for_one_pass_come_in_pieces(bench):
    settings = bench("decoding").Settings({}, 1, 1, 0, prefill_tokens=1000)
    assert [settings.piece(500, batch) for batch in (1, 2, 3, 500)] == [500, 500, 83, 1]


def test_read_rate_is_of_the_time_in_attention(bench):
    table = bench("decoding_table")
    row = {"held_bytes": 3e9, "copy_gb_s": 2000.0, "groups": {"attention": 2.0, "matmul": 9.0}}
    assert table.read_rate(row) == pytest.approx(0.75)
    assert table.read_rate({**row, "groups": {}}) is None
    assert table.read_rate({"held_bytes": 1, "copy_gb_s": 1.0}) is None


def test_the_kernels_of_a_decoding_step_count_as_attention(bench):
    group_of = bench("kernels").group_of
    names = ["_attend_kernel", "_combine_kernel", "flash_fwd_splitkv_kernel", "_score_kernel", "_append_kernel"]
    assert [group_of(name) for name in names] == ["attention"] * 3 + ["other"] * 2


def test_the_first_token_ends_the_prefill(bench, monkeypatch):
    clock = bench("clock")
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    cpu = torch.device("cpu")
    tokens = clock.TokenClock(cpu, clock.StepClock(cpu, warmup=1, steps=2, profiled=0))
    for now[0] in (5.0, 6.0, 6.5):
        tokens.tick()
    now[0] = 7.5
    with pytest.raises(clock.Measured):
        tokens.tick()
    assert tokens.prefill_s == 5.0
    assert tokens.steps.figures["ms"] == pytest.approx([500, 1000])
