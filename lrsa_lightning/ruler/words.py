"""RULER's random words, values and names (scripts/data/synthetic/niah.py, common_words_extraction.py)."""

import uuid
from functools import cache
from random import Random
from string import ascii_lowercase, ascii_uppercase
from typing import Literal

from lrsa_lightning.haystack import random_number, random_words, word_list

ItemType = Literal["words", "numbers", "uuids"]


@cache
def word_pool() -> list[str]:
    """All nouns, adjectives and verbs, sorted. cwe draws its words from them."""
    return sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")})


def random_uuid(rng: Random) -> str:
    """A UUID of version 4."""
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
    """Distinct names of upper-case letters. None of them is the keyword VAR."""
    names = coded_words(rng, count + 1, length, ascii_uppercase)
    return [name for name in names if name != "VAR"][:count]
