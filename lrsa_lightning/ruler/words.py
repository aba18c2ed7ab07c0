"""The random words and values RULER hides (scripts/data/synthetic/niah.py)."""

from functools import cache
from importlib.resources import files
from random import Random


@cache
def _words(kind: str) -> list[str]:
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return [word.strip() for word in text.splitlines() if word.strip()]


def random_words(rng: Random) -> str:
    """A key: adjective-noun of the package wonderwords."""
    return f"{rng.choice(_words('adjective'))}-{rng.choice(_words('noun'))}"


def random_number(rng: Random) -> str:
    """A value of seven digits."""
    return str(rng.randint(10**6, 10**7 - 1))
