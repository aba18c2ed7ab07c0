"""Random keys and values, and the noise that hides them: in RULER's samples and in the demo's documents.

Source: scripts/data/synthetic/niah.py of RULER.
"""

from functools import cache
from importlib.resources import files
from random import Random
from typing import Literal

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@cache
def word_list(part_of_speech: Literal["noun", "adjective", "verb"]) -> list[str]:
    """The package wonderwords' list of words, in its order."""
    text = (files("wonderwords") / "assets" / f"{part_of_speech}list.txt").read_text(encoding="utf-8")
    return [word.strip() for word in text.splitlines() if word.strip()]


def random_words(rng: Random) -> str:
    """A key: an adjective and a noun, joined by a hyphen."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


def random_number(rng: Random) -> str:
    """A value of seven digits."""
    return str(rng.randint(10**6, 10**7 - 1))
