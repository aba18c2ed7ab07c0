"""README.md and the pages of docs/: their blocks of code and their commands."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SHELL = ("", "bash")


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
    """The command lines of a block of the shell: continued lines joined, without comments. None of another block."""
    if block.language not in _SHELL:
        return []
    lines = re.sub(r"\\\n\s*", " ", block.code).splitlines()
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines) if line]


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
