"""The random words and values RULER hides (scripts/data/synthetic/niah.py, common_words_extraction.py)."""

import uuid
from functools import cache
from importlib.resources import files
from random import Random
from string import ascii_lowercase, ascii_uppercase
from typing import Literal

ItemType = Literal["words", "numbers", "uuids"]


@cache
def _words(kind: str) -> list[str]:
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return [word.strip() for word in text.splitlines() if word.strip()]


@cache
def word_pool() -> list[str]:
    """All nouns, adjectives and verbs, sorted: what the common words are drawn from."""
    return sorted({word for kind in ("noun", "adjective", "verb") for word in _words(kind)})


def random_words(rng: Random) -> str:
    """A key: adjective-noun of the package wonderwords."""
    return f"{rng.choice(_words('adjective'))}-{rng.choice(_words('noun'))}"


def random_number(rng: Random) -> str:
    """A value of seven digits."""
    return str(rng.randint(10**6, 10**7 - 1))


def random_uuid(rng: Random) -> str:
    """A version 4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def random_item(rng: Random, item_type: ItemType) -> str:
    """A key or a value of a needle."""
    return {"words": random_words, "numbers": random_number, "uuids": random_uuid}[item_type](rng)


def coded_words(rng: Random, count: int, length: int, letters: str = ascii_lowercase) -> list[str]:
    """Distinct words of random letters, in the order drawn."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(letters, k=length))] = None
    return list(words)


def variable_names(rng: Random, count: int, length: int) -> list[str]:
    """Distinct names of upper-case letters, none of which is the keyword VAR itself."""
    names = coded_words(rng, count + 1, length, ascii_uppercase)
    return [name for name in names if name != "VAR"][:count]
