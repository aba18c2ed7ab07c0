"""The callback Diagnosis: what it logs at checks, and that training does not notice it."""

import json
from pathlib import Path

import pytest

from lrsa_lightning import LRSA
from lrsa_lightning.cli import main
from lrsa_lightning.diagnosis import TextSource, diagnose
from lrsa_lightning.trained_model import load_checkpoint
from tests.runs import callback, checkpoints, command, losses, metrics, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def diagnosing(*others: dict, **options) -> str:
    return json.dumps([callback("Diagnosis", every_n_steps=2, **options), *others])


def test_checks_are_logged_and_drawn_and_training_goes_on_as_without(arguments, train_file, tokenizer):
    main(command({**arguments, "run_name": "plain"}))
    arguments["data.val_files"] = str(train_file)
    others = json.loads(checkpoints(2))
    main(command({**arguments, "trainer.callbacks": diagnosing(*others)}))
    assert losses() == losses("plain")
    rows = [row for row in metrics() if "diagnosis/held" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    names = {f"step-00000{i}-{name}" for i in (0, 2, 4, 6) for name in ("findings.json", "kept.png", "held.png")}
    assert {path.name for path in Path("runs/x/diagnosis").iterdir()} == names
    model = load_checkpoint(Path("runs/x/checkpoints/step=4.ckpt")).model
    texts = [*TextSource(tokenizer, "chatml", 160, extend=True).texts(str(train_file))][:2]
    again = diagnose(model, LRSA(lag_size=16, sink_size=4), texts, max_queries=512)
    assert {k: v for k, v in rows[2].items() if k.startswith("diagnosis/")} == pytest.approx(again.metrics(), rel=1e-5)


def test_a_run_with_full_attention_needs_a_rule(arguments, train_file, capsys):
    given = {key: value for key, value in arguments.items() if not key.startswith("model.attention")}
    given |= {"model.attention": "Vanilla", "data.val_files": str(train_file), "trainer.max_steps": "2"}
    assert "keeps every token" in refusal(capsys, command({**given, "trainer.callbacks": diagnosing()}))
    rule = {"class_path": "lrsa_lightning.attention.LRSA", "init_args": {"lag_size": 16, "sink_size": 4}}
    main(command({**given, "trainer.callbacks": diagnosing(attention=rule)}))
    assert sum("diagnosis/held" in row for row in metrics()) == 2


def test_without_texts_it_is_refused_before_the_first_step(arguments, capsys):
    error = refusal(capsys, command({**arguments, "trainer.callbacks": diagnosing()}))
    assert "Diagnosis has no texts: give it data, or set data.val_files" in error
