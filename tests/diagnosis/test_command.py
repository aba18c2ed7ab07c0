"""`lrsa diagnose`: runs, base models and controls, from the command line to the files."""

import json
import re
import shlex
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.commands.diagnose import make_parser
from lrsa_lightning.diagnosis import CLASSES
from lrsa_lightning.ruler import make_samples
from tests.conftest import make_model, write_jsonl
from tests.runs import refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
ROOT = Path(__file__).parents[2]
RULE = ["--attention", "LRSA", "--attention.lag_size", "64", "--attention.sink_size", "4"]


@pytest.fixture
def samples(tokenizer, tmp_path) -> str:
    return str(write_jsonl(tmp_path / "niah.jsonl", make_samples("niah_single_1", tokenizer, 640, 3)))


@pytest.fixture
def base(tokenizer, tmp_path) -> str:
    make_model(vocab_size=len(tokenizer)).save_pretrained("base")
    tokenizer.save_pretrained("base")
    return "base"


def findings(folder: str = "diagnosis") -> dict:
    return json.loads((Path(folder) / "findings.json").read_text())


def test_a_base_model_under_a_rule_of_choice(base, samples, capsys):
    main(["diagnose", base, "--data", samples, *RULE, "--template", "base", "--num_texts", "2"])
    out = capsys.readouterr().out
    assert "2 texts" in out
    assert "kept:" in out
    assert "needle" in out
    assert {path.name for path in Path("diagnosis").iterdir()} == {"findings.json", "kept.png", "held.png"}
    assert (Path("diagnosis") / "kept.png").read_bytes().startswith(b"\x89PNG")
    found = findings()
    assert found["attention"]["lag_size"] == 64
    assert (found["num_texts"], found["layers"], found["classes"]) == (2, [0, 1], [*CLASSES])
    assert [len(layer) for layer in found["kept_by_class"]] == [2, 2]  # KV heads
    assert [len(layer) for layer in found["held"]] == [4, 4]  # query heads
    assert all(0 < fraction < 1 for layer in found["held"] for fraction in layer)
    by_class = dict(zip(CLASSES, found["tokens"], strict=True))
    assert by_class["needle"] > 0
    assert by_class["answer"] == 0
    assert found["kept_by_class"][0][0][CLASSES.index("answer")] is None


def test_a_run_brings_its_rule_and_a_control_is_another(two_steps, samples, train_file):
    main(["diagnose", "runs/x", "--data", samples, "--max_tokens", "700"])
    assert findings()["attention"]["lag_size"] == 16
    rows = ["diagnose", "runs/x", "--data", str(train_file), "--extend", "true", "--output", "random"]
    main([*rows, "--attention", "LRSA", "--attention.scorer", "random", "--attention.lag_size", "16"])
    assert findings("random")["attention"]["scorer"] == "random"
    assert findings("random")["num_texts"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Vanilla(implementation='sdpa') keeps every token: name the rule to apply with --attention"),
        (["--attention", "LRSA"], "and none is left: raise --max_tokens, take a smaller lag_size"),
        ([*RULE, "--max_tokens", "2000"], "--max_tokens 2000 is beyond the model's 1024 positions"),
        ([*RULE, "--max_tokens", "100"], "3 texts are longer than 100 tokens, 0 shorter than 133"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(base, samples, options, message, capsys):
    assert message in refusal(capsys, ["diagnose", base, "--data", samples, *options])
    assert not Path("diagnosis").exists()


def test_the_page_shows_commands_and_keys_that_there_are(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in re.findall("^lrsa diagnose .*$", page, re.MULTILINE)]
    monkeypatch.chdir(ROOT)
    for _, _, *options in lines:
        make_parser().parse_args(options)
    assert len(lines) == 4
    file = tmp_path / "diagnosis.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), "--print_config"])
    assert "lrsa_lightning.callbacks.Diagnosis" in capsys.readouterr().out
