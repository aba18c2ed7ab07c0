"""The snippets of docs/transformers.md run, on tiny models."""

import re
from pathlib import Path

import pytest

from lrsa_lightning import LRSA
from tests.conftest import make_model
from tests.test_transformers_trainers import MARKED_TEMPLATE

PAGE = (Path(__file__).parent.parent / "docs" / "transformers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def models(tokenizer, tmp_path, monkeypatch):
    """The folders that the page names: one whose config.json names a rule, and one that has none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenizer, "chat_template", MARKED_TEMPLATE)
    model = make_model(vocab_size=len(tokenizer))
    model.save_pretrained("DENSE")
    LRSA(lag_size=8, sink_size=4).install(model)
    model.save_pretrained("FOLDER")
    for folder in ("DENSE", "FOLDER"):
        tokenizer.save_pretrained(folder)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("section", SECTIONS)
def test_the_snippet_runs(section, capsys):
    names = {}
    exec(SECTIONS[section].replace("report_to=[]", "report_to=[], use_cpu=True, bf16=False"), names)
    assert names["lrsa_lightning"]
    printed = capsys.readouterr().out
    if section.startswith("Load"):
        assert printed.startswith("lrsa {'lag_size': 8")
    if section == "Generate":
        assert printed.splitlines()[-1] == "LagKVCache"
    if "SAVED" in SECTIONS[section]:
        assert '"lrsa": {' in Path("SAVED/config.json").read_text(encoding="utf-8")


def test_there_are_snippets():
    assert len(SECTIONS) == 5
