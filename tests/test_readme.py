"""What the README and the pages without a test of their own give a user to type works; all links lead somewhere."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from tests.conftest import make_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page: page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PARSED = ("README", "training", "data", "ruler", "answers")
COMMANDS = [
    re.sub(r"\s+", " ", command.split("#")[0]).strip()
    for page, text in PAGES.items()
    if page.stem in PARSED
    for command in re.findall(r"^lrsa (?:.*\\\n)*.*$", text, re.MULTILINE)
]
LINKS = [
    (page, link)
    for page, text in PAGES.items()
    for link in re.findall(r"\]\((?!http)([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
]


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, monkeypatch, capsys):
    """tests/test_conversing.py runs generate and chat."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lrsa"])
    name, *options = shlex.split(line.replace("\\ ", ""))[1:]
    if name in ("inspect", "prepare"):
        parser = getattr(import_module(f"lrsa_lightning.commands.{name}"), "make_parser", None)
        name, options = "fit", parser().parse_known_args(options)[1] if parser else options
    elif name not in ("fit", "validate", "plan"):
        module = import_module(f"lrsa_lightning.commands.{name}")
        if hasattr(module, "make_parser"):
            module.make_parser().parse_args(options)
        return
    if "NAME" in line or "my.yaml" in line:
        return
    with pytest.raises(SystemExit) as caught:
        main([name, *options, "--print_config"])
    assert caught.value.code == 0
    assert "class_path: lrsa_lightning." in capsys.readouterr().out


def test_the_ten_lines_run(tmp_path, tokenizer, capsys):
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(code.replace("Qwen/Qwen2.5-0.5B", str(tmp_path)), {})
    assert capsys.readouterr().out.strip()


def test_the_readme_is_one_screen_after_the_other():
    assert len(README.splitlines()) <= 90


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda part: getattr(part, "stem", part))
def test_links_lead_to_a_file_and_a_heading(page, link):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{page.name}: {link}"
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
