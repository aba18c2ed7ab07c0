"""Each command of README.md and docs/ is run by a test or marked with the hardware it needs, and its options exist."""

import ast
import re
import runpy
import shlex
import sys

import pytest
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.version import __version__
from tests.pages import PAGES, ROOT, blocks, calls, commands, inline_commands, is_marked, prose, runners_of
from tests.test_structure import HEIGHT

OURS = re.compile(r"pip install (-e )?[\"']?(\.|lrsa-lightning)(\[([\w,]+)\])?[\"']?$")
SOURCES = [*(ROOT / "lrsa_lightning").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]
BLOCKS = [block for page in PAGES for block in blocks(page)]
LINES = sorted({(block.page, line) for block in BLOCKS for line in commands(block)})
INLINE = [(page, line) for page in PAGES for line in inline_commands(page)]
CALLS = sorted({(page, call) for page, line in [*LINES, *INLINE] for call in calls(line)})
BENCHES = [(page, line) for page, line in [*LINES, *INLINE] if "python scripts/" in line]


def name_of(part: object) -> str:
    return getattr(part, "stem", None) or re.sub(r"[^\w.-]+", "_", str(part))[:60]


@pytest.mark.parametrize("block", [b for b in BLOCKS if commands(b) or b.language == "python"], ids=name_of)
def test_a_block_is_run_by_a_test_or_says_what_it_needs(block):
    lines, name = commands(block), block.page.relative_to(ROOT)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    if is_marked(block) or (lines and all(line.removeprefix("make ") in targets for line in lines)):
        return
    runs = runners_of(block.page) or block.language != "python"  # tests/test_pages_run.py runs what no other test does
    assert runs, f"{name}, {block.heading}: run the Python in a test, or write 'Needs ...' above it"
    for line in lines:
        assert line.startswith("lrsa ") or OURS.match(line), (
            f"{block.page.name}: {line} is not run, write 'Needs ...' above it"
        )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_in_fences(page):
    """An indented line is code too, which no test would find."""
    programs = r"lrsa|python|pip|make|torchrun|srun|vllm|\w+=\S+ \w+"
    assert not re.findall(rf"^(?: {{4,}}|\t)(?:{programs}) .*$", prose(page), re.MULTILINE)
    assert "```" not in prose(page)


@pytest.mark.parametrize(("page", "call"), CALLS, ids=name_of)
def test_the_options_exist(page, call, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lrsa"])
    name, *options = shlex.split(call)
    assert name in COMMANDS, f"{page.name}: there is no `lrsa {name}`"
    if name not in ("lm_eval", "serve"):  # which hand further ones on
        actions = [action for parser in COMMANDS[name].parsers() for action in parser._actions]
        known = {option for action in actions for option in action.option_strings}
        for option in options:
            root = re.match(r"--[\w-]+", option)
            assert root is None or root[0] in known or f"{root[0]}." in " ".join(known), (
                f"{page.name}: {call}: {option}"
            )
    if name in ("inspect", "prepare"):
        name, options = "fit", COMMANDS["inspect"].parsers()[0].parse_known_args(options)[1]
    if name in ("fit", "validate", "plan") and options:
        with pytest.raises(SystemExit) as ended:
            main([name, *without_files_of_the_reader(options), "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err


def without_files_of_the_reader(options: list[str]) -> list[str]:
    """The options less configurations that a reader has, such as my.yaml and runs/NAME/config.yaml."""
    kept = []
    for option in options:
        if kept[-1:] == ["--config"] and not (ROOT / option).exists():
            kept.pop()
        else:
            kept.append(option)
    return kept


@pytest.mark.parametrize(
    ("page", "line"), [pair for pair in [*LINES, *INLINE] if "python scripts/" in pair[1]], ids=name_of
)
def test_the_benches_have_the_options(page, line, monkeypatch, capsys):
    script, *options = shlex.split(line[line.index("scripts/") :])
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    said = capsys.readouterr().out
    assert all(option in said for option in options if option.startswith("--"))


def test_make_has_the_targets_and_the_package_the_extras():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in {
        found for text in texts for found in re.findall(r"lrsa-lightning\[([\w,]+)\]|'\.\[([\w,]+)\]'", text)
    }:
        for extra in filter(None, ",".join(extras).split(",")):
            assert re.search(rf"^{extra} = \[", listed, re.MULTILINE), extra
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in {found for text in texts for found in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def _texts(tree: ast.AST) -> list[str]:
    """The texts of a module, with ... for what is filled in."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
            texts.append("".join(parts))
    return [re.sub(r"%[sdr]|%\.\d+f", "...", text) for text in texts]


def test_the_messages_of_the_faq_are_those_of_the_code():
    quoted = re.findall(r"^> (.*)$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) >= 10
    said = "\n".join(text for path in SOURCES for text in _texts(ast.parse(path.read_text(encoding="utf-8"))))
    for message in quoted:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            assert part in said or "LrsaQwen2" in part, message  # vLLM's own


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


def test_the_map_of_the_code_names_each_package():
    named = {*re.findall(r"`(\w+)/?`", (ROOT / "docs" / "code.md").read_text(encoding="utf-8"))}
    assert not HEIGHT.keys() - named - {"lrsa_lightning", "scripts", "__main__"}
