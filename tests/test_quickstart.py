"""docs/quickstart.md: a person with 60 documents gets to a chat by its commands, on the CPU, with a tiny model."""

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from tests.conftest import make_model
from tests.pages import blocks, commands
from tests.runs import metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
PAGE = Path(__file__).parent.parent / "docs" / "quickstart.md"
RUN = [line for block in blocks(PAGE) if block.heading.startswith(("4", "5")) for line in commands(block)]
GPU = [line for block in blocks(PAGE) if block.heading.startswith("3") for line in commands(block)]


@pytest.fixture
def files(tokenizer) -> None:
    """60 documents and their questions as the page says, and tiny models in place of the hub's."""
    table = re.search(r"```text\n(file,question,answer\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    header, *_ = table.splitlines()
    Path("documents").mkdir()
    lines = [header]
    for number in range(60):
        text = f"Letter {number}\n\n" + "The weather is mild.\n\n" * 3 + f"The mill costs {number} crowns.\n"
        Path(f"documents/letter_{number:02d}.txt").write_text(text)
        lines.append(f'letter_{number:02d}.txt,What does the mill cost?,"{number} crowns, no more."')
    Path("questions.csv").write_text("\n".join(lines))
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"):
        make_model(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(name)
        tokenizer.save_pretrained(name)
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1], {})


def run(line: str, capsys) -> str:
    lrsa, *options = shlex.split(line)
    assert lrsa == "lrsa"
    main(options + (["--max_new_tokens", "4"] if options[0] in ("chat", "generate") else []))
    return capsys.readouterr().out


def test_from_60_documents_to_a_chat(files, capsys, monkeypatch):
    rows = [json.loads(line) for line in Path("my.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert rows[7]["document"].startswith("Letter 7\n")
    assert rows[7]["answer"] == "7 crowns, no more."
    monkeypatch.setattr(sys, "stdin", io.StringIO("What does the mill cost?\n"))
    said = {shlex.split(line)[1]: run(line, capsys) for line in RUN}
    assert "60 read, 60 kept, 0 left out" in said["inspect"]
    assert sum("train/loss" in row for row in metrics("letters")) == 30  # 2 epochs of 60 rows, 4 a step
    assert said["chat"].strip()
    assert said["generate"].strip()
    assert json.loads(Path("my_model/config.json").read_text())["lrsa"]["lag_size"] == 16


def test_the_gpu_is_given_the_files_of_the_page(files, capsys):
    """Its run alone needs the hardware: `inspect` runs, and `plan` reads the same options."""
    inspect, plan, fit, chat = GPU
    assert "60 read, 60 kept" in run(inspect, capsys)
    assert "fits" in run(plan, capsys)
    assert shlex.split(fit)[2:6] == shlex.split(plan)[2:6]
    assert chat in RUN
