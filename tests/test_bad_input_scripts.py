"""Wrong inputs of the commands besides `lrsa fit`, of the benches and of sweep files."""

import importlib
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.commands import COMMANDS
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
def test_sweep_files(capsys, wrong, said):
    write("x.yaml", wrong)
    refused(capsys, lambda: main(["sweep", "x.yaml"]), *said)


LINES = [
    (["sweep", "absent.yaml"], "absent.yaml cannot be read (No such file or directory)"),
    (["sweep", "x.yaml", "--jobs", "-1"], "--jobs is '-1', but must be a whole number of at least 1"),
    (["sweep", "x.yaml", "--count", "0"], "--count is '0'"),
    (["sweep", "x.yaml", "--cell", "two"], "--cell is 'two'"),
    (["sweep"], "the following arguments are required: SWEEP.yaml"),
    (["report", "absent"], "absent"),
    (["report", "absent", "--step", "-1"], "--step is '-1'"),
    (["export", "absent.ckpt", "--output", "out"], "absent.ckpt"),
    (["export", "absent.ckpt", "--output", "out", "--dtype", "int3"], "--dtype: invalid choice: 'int3'"),
    (["inspect", "--sample", "-1"], "--sample is '-1'"),
    (["inspect", "--data.seq_len", "long"], "data.seq_len is long"),
    (["prepare", "--config", "absent.yaml"], "absent.yaml (--config) does not exist"),
    (["eval"], "give exactly one of --model and --checkpoint"),
    (["eval", "--model", "x", "--attention", "absent.yaml"], "absent.yaml (--attention) does not exist"),
    (["eval", "--checkpoint", "absent.ckpt", "--skip_missing"], "absent.ckpt does not exist"),
    (["eval", "--predictions", "absent.jsonl"], "absent"),
    (["bench_step", "--labels", "1"], "--labels is 1, but must be from 2 to 32767"),
    (["bench_step", "--model", "qwen9"], "--model: 'qwen9' is none of tiny, qwen2.5-0.5b"),
    (["bench_step", "--model", "{"], "--model: "),
    (["bench_step", "--global-batch", "3", "--micro-batch", "2"], "--global-batch 3 is not a multiple"),
    (["bench_generate", "--model", "qwen9"], "--model: 'qwen9' is none of tiny, qwen2.5-0.5b"),
    (["bench_generate", "--batches", "0"], "--batches is '0'"),
    (["bench_distributed", "--devices", "1"], "--devices is '1', but must be"),
]


@cases(LINES)
def test_commands_and_benches(capsys, monkeypatch, wrong, said):
    name, *arguments = wrong
    refused(capsys, lambda: main(wrong) if name in COMMANDS else _script(monkeypatch, name)(arguments), *said)


def _script(monkeypatch, name: str):
    """The main function of a script, which imports those beside it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(name).main
