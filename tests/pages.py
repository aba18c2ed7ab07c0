"""README.md and the pages of docs/: their blocks of code and their commands."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SHELL = ("", "bash")
_MARK = re.compile(r"\bNeeds (a|an|the|\d+|vLLM)\b")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: its file.
        heading: the nearest one above it.
        before: the paragraph above it, or the last item of a list.
        language: the word after the fence.
        code: its lines.
    """

    page: Path
    heading: str
    before: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        above = _FENCE.sub("", text[: match.start()])
        headings = re.findall(r"^#+ (.*)$", above, re.MULTILINE)
        before = above.rstrip().rpartition("\n\n")[2]
        found.append(Block(page, headings[-1] if headings else "", before, match[1], match[2]))
    return found


def commands(block: Block) -> list[str]:
    """The command lines of a block of the shell: continued lines joined, without comments. None of another block.

    A line that begins with `lrsa:` is not among them: it is what a command says.
    """
    if block.language not in _SHELL:
        return []
    lines = re.sub(r"\\\n\s*", " ", block.code).splitlines()
    found = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines]
    return [line for line in found if line and not line.startswith("lrsa: ")]


def is_marked(block: Block) -> bool:
    """Whether the paragraph above it says what hardware or network it needs."""
    return _MARK.search(block.before) is not None


@cache
def _docstrings() -> dict[Path, str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}


def runners_of(page: Path) -> list[Path]:
    """The files of tests whose docstring names a page: those that run its commands and its Python."""
    name = re.compile(rf"(^|\s){re.escape(page.relative_to(ROOT).as_posix())}\b", re.MULTILINE)
    return [path for path, docstring in _docstrings().items() if name.search(docstring)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_commands(page: Path) -> list[str]:
    """The command lines within the sentences of a page."""
    return sorted({" ".join(code.split()) for code in re.findall(r"`((?:lrsa|python) [^`]+)`", prose(page))})


def calls(line: str) -> list[str]:
    """What follows `lrsa` in a command line. None of a form such as `lrsa SUBCOMMAND --help`."""
    parts = [re.search(r"(?:^|\s)(?:lrsa|-m lrsa_lightning\.cli) (.*)", part) for part in line.split(" && ")]
    found = [part[1].partition(" > ")[0].replace("...", "") for part in parts if part]
    return [call for call in found if not re.match(r"[A-Z-]|.*[A-Z]+\[", call)]
