"""Reads JSONL in LongAlign's format: one object a line, `messages` of a user and an assistant turn.

The user's turn holds a long document and, as its last paragraph, the question; the assistant's the answer.
Format of the public data set THUDM/LongAlign-10k.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lrsa_lightning.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One question about one long text.

    Attributes:
        id: unique within the training set: file name and line number.
        prompt: the user's turn, document and question.
        answer: the assistant's turn.
    """

    id: str
    prompt: str
    answer: str

    def paragraphs(self) -> list[str]:
        """The document's paragraphs: the prompt without its last one, the question."""
        return [p for p in self.prompt.split("\n\n")[:-1] if p.strip()]


def read_longalign(path: str | Path) -> Iterator[Sample]:
    """Yields the samples of one file in its order.

    Raises:
        InputError: the file is missing, is not UTF-8, or a line is malformed; names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"data file {path} does not exist. Expected JSONL in LongAlign's format, one object with `messages` a "
            "line; set data.train_files to your file."
        )
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse(line, path, number)


def _parse(line: bytes, path: Path, number: int) -> Sample:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); one object a line") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    expected = 'expected {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
    if not isinstance(messages, list) or [m.get("role") for m in messages if isinstance(m, dict)] != [
        "user",
        "assistant",
    ]:
        raise InputError(f"{where}: {expected}")
    contents = [message.get("content") for message in messages]
    if not all(isinstance(content, str) and content.strip() for content in contents):
        raise InputError(f"{where}: a message has no content; {expected}")
    return Sample(f"{path.name}:{number}", *contents)
