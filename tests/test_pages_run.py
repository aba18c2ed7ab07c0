"""The commands of the pages run as they stand, in their order, where the names that they use mean tiny files.

README.md and docs/elastic.md, whose Python other tests run, and each page that no other test names. What a page
marks as in need of hardware is left out.
"""

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.cli import main
from tests.conftest import make_model, sample_rows, write_jsonl
from tests.pages import PAGES, ROOT, blocks, commands, is_marked, runners_of
from tests.ruler.conftest import essay_sentences, hotpotqa_content, squad_content
from tests.runs import EACH_STEP, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
OWN = Path(__file__)
RUN = [page for page in PAGES if OWN in runners_of(page) or not runners_of(page)]
HUB = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B")
ROWS = ("my.jsonl", "long.jsonl", "held_out.jsonl")
# Later options win: those that make a command small.
SMALL = {
    "chat": "--max_new_tokens 4",
    "diagnose": "--max_tokens 640 --num_texts 2",
    "eval": "--tasks niah_single_1 --lengths 640 --num_samples 1 --budgets 0.5 --precision float32",
    "plan": "--device h200",
    "ruler": "--lengths 640 --num_samples 2",
    "sweep": "--list",
}
LAG = "--attention.lag_size 16"


@pytest.fixture
def files(arguments, tokenizer) -> None:
    """Those that the pages name: configurations of two steps, rows, models, RULER's sources, and the run NAME."""
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=32768)
    for name in HUB:
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    for name in ROWS:
        write_jsonl(Path(name), sample_rows())
    Path("book.txt").write_text("Anna wrote the letter. " * 10)
    Path("PaulGrahamEssays.json").write_text(json.dumps({"text": " ".join(essay_sentences())}))
    Path("squad.json").write_text(json.dumps(squad_content()))
    Path("hotpotqa.json").write_text(json.dumps(hotpotqa_content()))
    _write_configs(arguments)
    given = arguments | {"data.train_files": "my.jsonl", "trainer.max_steps": "2", "trainer.callbacks": EACH_STEP}
    main(command(given | {"run_name": "NAME"}))
    dense = {key: value for key, value in given.items() if not key.startswith("model.attention")}
    main(command(dense | {"run_name": "vanilla", "model.attention": "Vanilla"}))


def _write_configs(arguments: dict[str, str]) -> None:
    """Each file of configs/ that trains, as a tiny run; the attention modes, sweeps and adapters as they are."""
    tiny: dict = {}
    for key, value in (arguments | {"trainer.max_steps": "2", "trainer.callbacks": EACH_STEP}).items():
        section, _, name = key.partition(".")
        if name and not name.startswith("attention"):
            tiny.setdefault(section, {})[name] = yaml.safe_load(value)
    Path("my.yaml").write_text(json.dumps(tiny))
    for folder in ("attention", "sweeps", "lora"):
        Path("configs").mkdir(exist_ok=True)
        Path("configs", folder).symlink_to(ROOT / "configs" / folder)
    for file in [ROOT / "configs/demo.yaml", *(ROOT / "configs").glob("[etm]*/*.yaml")]:
        target = Path("configs", file.relative_to(ROOT / "configs"))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = {"trainer": {"accelerator": "cpu", "devices": 1}} if target.parent.name == "trainer" else tiny
        target.write_text(json.dumps(part))


def run(line: str) -> None:
    lrsa, name, *options = shlex.split(line.replace("4096", "640").replace("FOLDER", "ruler"))
    assert lrsa == "lrsa"
    small = SMALL.get(name, "") + (f" {LAG}" if "--attention" in options and name == "diagnose" else "")
    main([name, *options, *small.split()])


@pytest.mark.slow
def test_the_commands_run(files, monkeypatch, capsys):
    for block in (block for page in RUN for block in blocks(page) if not is_marked(block)):
        for line in commands(block):
            if line.startswith("lrsa "):
                monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n"))
                run(line)
    assert Path("report/report.html").exists()
    assert json.loads(Path("diagnosis/chat/findings.json").read_text())["num_texts"] == 2
