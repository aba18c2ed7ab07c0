"""`lrsa bench-serve` without vLLM: its engines' arguments, its load, its table, and the CPU time of others."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lrsa_lightning import LRSA
from lrsa_lightning.cli import main
from lrsa_lightning.serving import installed_vllm
from lrsa_lightning.serving.bench import others
from lrsa_lightning.serving.bench.load import Benchmark, Load, request_bytes
from lrsa_lightning.serving.bench.table import table
from lrsa_lightning.serving.served_model import ServedModel
from tests.conftest import make_model

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def folder() -> str:
    model = make_model()
    LRSA(lag_size=64, sink_size=4, retention_ratio=1.0).install(model)
    model.save_pretrained("folder")
    return "folder"


def test_engines_have_the_same_memory_and_length(folder):
    load = Load(300, 20, 5)
    bench = Benchmark(ServedModel(folder), (0.5, 1.0), load, 10**6, {"enforce_eager": True})
    engines = bench.engines("cpu")
    shared = {"max_model_len": 320, "max_num_seqs": 5, "kv_cache_memory_bytes": 10**6, "enforce_eager": True}
    assert all(arguments.items() >= shared.items() for arguments in engines.values())
    assert [*engines] == ["dense", "r=0.5", "r=1"]
    assert engines["dense"]["hf_overrides"]["lrsa"] is None
    assert engines["r=0.5"]["additional_config"] == {"lrsa": {"retention_ratio": 0.5}}
    assert sum(arguments["gpu_memory_utilization"] for arguments in bench.engines("cuda").values()) < 1


def test_the_memory_is_that_of_complete_requests(folder):
    """3 blocks of 128 tokens and one more; 2 layers, keys and values, 2 KV heads of 8 numbers."""
    assert request_bytes(ServedModel(folder), Load(300, 20, 5), 4) == 4 * 128 * 2 * 2 * 2 * 8 * 4


def test_prompts_share_no_prefix_from_part_to_part():
    load = Load(9, 2, 3)
    first, again, other = (load.prompts(97, part) for part in ("alone 0", "alone 0", "together 0"))
    assert first == again
    assert [len(prompt) for prompt in first] == [9] * 3
    assert not {tuple(prompt) for prompt in first} & {tuple(prompt) for prompt in other}
    assert all(0 <= token < 97 for prompt in first for token in prompt)


def test_the_table_compares_with_full_attention():
    def figures(rate, running, preemptions, elsewhere):
        together = {"requests_a_second": rate, "first_token_s": 2.0, "ms_a_token": 10.0, "others_cpu": elsewhere}
        together |= {"running_before_preemption": running, "preemptions": preemptions}
        return {"together": together, "alone": {"first_token_s": 0.5, "ms_a_token": 5.0, "others_cpu": 0.0}}

    lines = table({"dense": figures(2.0, 9, 3, 0.1), "r=0.5": figures(3.0, 15, 0, 0.25)}, 15).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["dense", "2", "2", "10", "9", "3", "0.5", "5", "10%"]
    assert cells[3][:2] == ["r=0.5", "3 (1.50x)"]
    assert cells[3][4:6] == ["at least 15 (1.67x)", "0"]
    assert cells[3][-1] == "25%"


def test_others_cpu_is_what_this_process_and_its_children_did_not_use(monkeypatch):
    values = {"_busy_s": [100.0, 110.0], "_own_s": [1.0, 5.0], "perf_counter": [0.0, 10.0]}
    for name, given in values.items():
        monkeypatch.setattr(others, name, iter(given).__next__)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with others.OthersCPU() as measured:
        pass
    assert measured.fraction == pytest.approx((10 - 4) / (10 * 2))


def test_children_count_as_own():
    burn = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    before = others._own_s()
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert others._own_s() - before >= 0.3
        child.communicate(b"\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dense"], "dense names no rule in config.json: there is nothing to compare"),
        (["folder", "--prompt_tokens", "1020"], "--prompt_tokens 1020 and --new_tokens 128 are more than the 1024"),
        (["folder", "--retention_ratios", "0.3"], "a compressed chunk keeps 19 of 64"),
        (["folder", "--engine", "[]"], "--engine"),
        (["folder", "--output", "nowhere/x.json"], "--output nowhere/x.json: its folder does not exist"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, options, message):
    make_model().save_pretrained("dense")
    monkeypatch.setattr(installed_vllm, "packages_distributions", lambda: {"vllm": ["vllm"]})
    monkeypatch.setattr(installed_vllm, "version", lambda _: "0.32.0")
    monkeypatch.setattr(installed_vllm, "entry_points", lambda group: SimpleNamespace(names={"lrsa"}))
    with pytest.raises(SystemExit) as ended:
        main(["bench-serve", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
