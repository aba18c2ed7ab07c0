"""The files of some RULER tasks, in the official code's formats."""

import gzip
import json
import re
import zlib
from bisect import bisect_right
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.documents import Questions, read_hotpotqa, read_squad

# Closing quotes and brackets belong to the sentence.
_SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*$")


@dataclass(frozen=True)
class Sources:
    """Paths of the files, each .json or .json.gz; None where the user has none.

    Attributes:
        essays: PaulGrahamEssays.json, the haystack of six niah tasks.
        squad: squad.json, SQuAD's dev set v2.0, for qa_1.
        hotpotqa: hotpotqa.json, HotpotQA's dev set (distractor), for qa_2.
        english_words: english_words.json, for cwe where its own 8166 words do not suffice.
    """

    essays: str | Path | None = None
    squad: str | Path | None = None
    hotpotqa: str | Path | None = None
    english_words: str | Path | None = None

    def given(self) -> dict[str, Path]:
        """The given files, by name.

        Raises:
            InputError: a file does not exist.
        """
        paths = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: Path(path) for name, path in paths.items() if path is not None}
        for name, path in given.items():
            if not path.is_file():
                raise InputError(f"RULER's {name} file {path} does not exist: {WHERE_TO_GET[name]}")
        return given

    def read(self, name: str):
        """The content of a file: `Essays`, `Questions` or a list of words.

        Raises:
            InputError: the file is not given, or has another format.
        """
        if name not in self.given():
            raise InputError(f"RULER needs the file {name}: {WHERE_TO_GET[name]}")
        path = self.given()[name].resolve()
        return _read(name, path, path.stat().st_mtime_ns)


_JSON = "scripts/data/synthetic/json of github.com/NVIDIA/RULER"
# The file to give for a name of `Sources`, and its origin.
WHERE_TO_GET = {
    "essays": f"give PaulGrahamEssays.json, made by download_paulgraham_essay.py in {_JSON}",
    "squad": "give squad.json, from https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
    "hotpotqa": "give hotpotqa.json, from http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
    "english_words": f"give english_words.json from {_JSON} (git LFS)",
}


class Essays:
    """A text of all essays as words and sentences. Any white space separates words."""

    def __init__(self, text: str):
        self._words = text.split()
        ends = [i + 1 for i, word in enumerate(self._words) if _SENTENCE_END.search(word)]
        self._ends = ends if ends and ends[-1] == len(self._words) else [*ends, len(self._words)]
        self._sentences = [
            " ".join(self._words[start:end]) for start, end in zip([0, *self._ends], self._ends, strict=False)
        ]

    def sentences(self, num_words: int) -> list[str]:
        """The sentences of the first words, the last one cut short. After their end the essays start again."""
        rounds, rest = divmod(num_words, len(self._words))
        whole = bisect_right(self._ends, rest)
        sentences = self._sentences * rounds + self._sentences[:whole]
        start = self._ends[whole - 1] if whole else 0
        return [*sentences, " ".join(self._words[start:rest])] if rest > start else sentences


def _parse_essays(content) -> Essays:
    if not content["text"].split():
        raise ValueError("no text")
    return Essays(content["text"])


def _parse_words(content) -> list[str]:
    words = list(content.values())
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError("no words")
    return words


_PARSE = {
    "essays": _parse_essays,
    "squad": read_squad,
    "hotpotqa": read_hotpotqa,
    "english_words": _parse_words,
}
_EXPECTED = {
    "essays": '{"text": "..."}',
    "squad": 'SQuAD v2.0: {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}',
    "hotpotqa": 'HotpotQA: [{"question": ..., "answer": ..., "context": [[title, [sentence, ...]], ...]}]',
    "english_words": '{"0": word, "1": word, ...}',
}


def read_content(name: str, path: Path) -> Any:
    """The JSON of a file, in a form that `parse` accepts.

    Args:
        name: of a field of `Sources`.
        path: .json or .json.gz.

    Raises:
        InputError: the file has another format.
    """
    return _checked(name, path)[0]


def parse(name: str, content: Any) -> "Essays | Questions | list[str]":
    """What the tasks read in such a content. Raises ValueError, KeyError, TypeError or AttributeError for another."""
    return _PARSE[name](content)


@lru_cache(maxsize=8)
def _read(name: str, path: Path, changed_ns: int) -> Essays | Questions | list[str]:
    return _checked(name, path)[1]


def _checked(name: str, path: Path) -> tuple[Any, Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            content = json.load(file)
        return content, parse(name, content)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"RULER's {name} file {path}: expected {_EXPECTED[name]} ({error!r})") from error
