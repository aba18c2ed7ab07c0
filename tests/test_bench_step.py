"""The benches of training steps: their figures by hand, their rows' processes, and runs on the CPU."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of scripts/bench/."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: importlib.import_module(f"bench.{name}")


def test_kernels_that_overlap_are_busy_once_and_copies_from_the_host_not_at_all(bench):
    kernels = bench("kernels")
    found = [
        kernels.Kernel("nvjet_tst_128x256", 0, 3000),
        kernels.Kernel("elementwise_kernel", 2000, 4000),  # on another stream
        kernels.Kernel("elementwise_kernel", 2500, 2600),  # within the one before
        kernels.Kernel("Memcpy HtoD (Pinned -> Device)", 4000, 9000),
        kernels.Kernel("kernel_cutlass_flash_fwd_sm90", 9000, 10000),
    ]
    assert kernels.busy_ms(found) == pytest.approx(5.0)
    assert kernels.busy_ms(reversed(found)) == pytest.approx(5.0)
    figures = kernels.profile_figures(found, steps=2)
    assert figures["idle"] == pytest.approx(0.5)
    assert (figures["busy_ms"], figures["span_ms"]) == pytest.approx((2.5, 5.0))
    groups = {"host copies": 2.5, "matmul": 1.5, "elementwise": 1.05, "attention": 0.5}
    assert figures["groups"] == pytest.approx(groups)
    assert figures["kernels"][2] == ("elementwise_kernel", pytest.approx(1.05), 1.0)


def test_the_clock_leaves_out_the_warm_up_and_takes_the_median(bench, monkeypatch):
    clock = bench("clock")
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    steps = clock.StepClock(torch.device("cpu"), warmup=2, steps=3, profiled=2)
    for now[0] in (3.0, 10.0, 11.0, 11.5):
        steps.tick()
    now[0] = 14.0
    with pytest.raises(clock.Measured):
        steps.tick()
    assert steps.figures["ms"] == pytest.approx([1000, 500, 2500])
    assert steps.figures["median_ms"] == pytest.approx(1000)
    assert steps.figures["mean_ms"] == pytest.approx(4000 / 3)


def do(what: str) -> tuple[str, int]:
    """Work of a row, in a process of its own."""
    if what == "crash":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "raise":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
    return what, os.getpid()


def test_a_row_that_fails_loses_itself_alone(bench):
    processes = bench("processes")
    done = list(processes.results(do, ["a", "b", "raise", "c", "crash"], timeout_s=60))
    done += processes.results(do, ["hang"], timeout_s=0.5)
    said = {item: str(result) if isinstance(result, processes.Failed) else result[0][0] for item, result in done}
    assert said == {
        **{"a": "a", "b": "b", "c": "c"},
        "raise": "out of memory",
        "crash": "crashed with exit status 3",
        "hang": "not finished after 0.5 s",
    }
    pids = [done[i][1][0][1] for i in (0, 1, 3)]
    assert pids[0] == pids[1] != pids[2] != os.getpid()


def run(script: str, *options: str, cwd: Path) -> tuple[str, list[dict]]:
    """What it prints, and the rows of its JSON file."""
    tiny = ["--length", "256", "--labels", "32", "--model", "tiny", "--lag", "32", "--warmup", "1", "--steps", "2"]
    command = [sys.executable, SCRIPTS / script, *tiny, "--json", "rows.json", "--data.num_workers", "0", *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, env=one_thread)
    assert result.returncode == 0, result.stderr
    assert not (cwd / "runs").exists()
    found = json.loads((cwd / "rows.json").read_text())
    return result.stdout, found if isinstance(found, list) else found["rows"]


def test_a_step_on_the_cpu(tmp_path):
    printed, (dense, lrsa) = run("bench_step.py", "--rows", "FlashAttention|r=0.5", cwd=tmp_path)
    assert dense["failed"] == "needs a Hopper GPU and flash-attn-4"
    assert re.search(r"LRSA r=0.5 \| \d+(\.\d)? \|", printed)
    # 2 layers: projections 32 x (32 + 2 x 16 + 32), feed-forward 3 x 32 x 64; the head on 32 tokens; 3 passes.
    linear = 2 * 2 * (32 * 96 + 3 * 32 * 64) * 256 + 2 * 32 * 512 * 32
    dense_flops = 3 * (linear + 2 * 4 * 4 * 8 * (256 * 257 // 2))
    rate = lrsa["mfu_dense"] * lrsa["matrix_tflops"] * 1e12
    assert rate * lrsa["median_ms"] / 1000 == pytest.approx(dense_flops)
    assert lrsa["mfu"] < lrsa["mfu_dense"]
    assert lrsa["tokens_per_second"] == pytest.approx(256 / lrsa["median_ms"] * 1000)
    assert len(lrsa["ms"]) == 2


@pytest.mark.slow
def test_shared_sequences_on_the_cpu(tmp_path):
    _, rows = run("bench_distributed.py", "--rows", "LRSA", "--strategies", "fsdp2", "--links", "host", cwd=tmp_path)
    ulysses, context = rows
    assert [row["row"] for row in rows] == ["LRSA r=0.5 ulysses fsdp2 host", "LRSA r=0.5 context fsdp2 host"]
    assert ulysses["losses"] == pytest.approx(context["losses"], abs=1e-4)
    # To each of 2 ranks: half of 4 heads of q and output, 2 of k and v, 128 tokens, D = 8, 2 layers, 2 bytes.
    a_pass = 2 * (4 + 2) // 2 * 128 * 8 * 2 * 2
    assert [gib * 2**30 / a_pass in (2, 3) for gib in ulysses["received_gib"]] == [True] * 2  # 3 if recomputed
