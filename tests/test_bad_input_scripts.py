"""Wrong inputs of the scripts and of sweep files."""

import importlib
from pathlib import Path

import pytest

from tests.refusals import BOMB, cases, refused, write

pytestmark = pytest.mark.usefixtures("in_tmp_path")
SCRIPTS = Path(__file__).parents[1] / "scripts"
SWEEP = "program: lrsa\nmethod: grid\nparameters: {a: {value: 1}}\ncommand: [lrsa, '${args}']\n"
SWEEPS = [
    (SWEEP + "method: random\n", "x.yaml, line 5: key method was given in line 2 already"),
    (BOMB, "x.yaml, line 5", "more than 100000 values"),
    ("", "x.yaml is empty: expected a sweep file"),
    ("- 1\n", "x.yaml holds no keys and values: expected a sweep file"),
    ("{", "x.yaml: line 2", "expected a sweep file"),
    (b"\xff", "x.yaml is not UTF-8 text"),
]


@cases(SWEEPS)
def test_sweep_files(capsys, monkeypatch, wrong, said):
    write("x.yaml", wrong)
    refused(capsys, lambda: _script(monkeypatch, "sweep_local")(["x.yaml"]), *said)


COMMANDS = [
    (["sweep_local", "absent.yaml"], "absent.yaml cannot be read (No such file or directory)"),
    (["sweep_local", "x.yaml", "--jobs", "-1"], "--jobs is '-1', but must be a whole number of at least 1"),
    (["sweep_local", "x.yaml", "--count", "0"], "--count is '0'"),
    (["sweep_local", "x.yaml", "--cell", "two"], "--cell is 'two'"),
    (["sweep_local"], "the following arguments are required: SWEEP.yaml"),
    (["report", "absent"], "absent"),
    (["report", "absent", "--step", "-1"], "--step is '-1'"),
    (["export_hf", "absent.ckpt", "--output", "out"], "absent.ckpt"),
    (["export_hf", "absent.ckpt", "--output", "out", "--dtype", "int3"], "--dtype: invalid choice: 'int3'"),
    (["inspect_data", "--sample", "-1"], "--sample is '-1'"),
    (["inspect_data", "--data.seq_len", "long"], "data.seq_len is long"),
    (["prepare_data", "--config", "absent.yaml"], "absent.yaml (--config) does not exist"),
    (["eval_ruler"], "give exactly one of --model and --checkpoint"),
    (["eval_ruler", "--model", "x", "--attention", "absent.yaml"], "absent.yaml (--attention) does not exist"),
    (["eval_ruler", "--checkpoint", "absent.ckpt", "--skip_missing"], "absent.ckpt does not exist"),
    (["eval_ruler", "--predictions", "absent.jsonl"], "absent"),
    (["bench_step", "--labels", "1"], "--labels is 1, but must be from 2 to 32767"),
    (["bench_step", "--model", "qwen9"], "--model: 'qwen9' is none of tiny, qwen2.5-0.5b"),
    (["bench_step", "--model", "{"], "--model: "),
    (["bench_step", "--global-batch", "3", "--micro-batch", "2"], "--global-batch 3 is not a multiple"),
    (["bench_generate", "--model", "qwen9"], "--model: 'qwen9' is none of tiny, qwen2.5-0.5b"),
    (["bench_generate", "--batches", "0"], "--batches is '0'"),
    (["bench_distributed", "--devices", "1"], "--devices is '1', but must be"),
]


@cases(COMMANDS)
def test_scripts(capsys, monkeypatch, wrong, said):
    name, *arguments = wrong
    refused(capsys, lambda: _script(monkeypatch, name)(arguments), *said)


def _script(monkeypatch, name: str):
    """The main function of a script, which imports those beside it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(name).main
