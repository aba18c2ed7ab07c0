"""Rows with needles: made-up facts in prose, in filler, or as lines among lines of their kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lrsa_lightning.recipe.rows import Draw, Row
from lrsa_lightning.recipe.wording import FILLER, Wording, distinct, of_lines, of_prose, values

# Needles, keys asked for and values of each, by the kind of a row. A key without a question distracts.
_SIZES = {
    "one": (1, 1, 1),
    "keys": (6, 1, 1),
    "values": (1, 1, 3),
    "queries": (5, 3, 1),
    "filler": (1, 1, 1),
}
KINDS = (*_SIZES, "lines")


@dataclass(frozen=True)
class NeedleDraw(Draw):
    """Needles at random places among so many sentences.

    Attributes:
        sentences: of the haystack, which begins anew at its end.
        start: the first sentence.
        needles: texts and their places, 0 the start and 1 the end.
        question: for them.
        answer: to it.
    """

    sentences: Sequence[str]
    start: int
    needles: list[tuple[float, str]]
    question: str
    answer: str

    @classmethod
    def of(cls, kind: str, prose: Sequence[str], rng: Random) -> "NeedleDraw":
        """Draws keys, values, places and wording."""
        num_keys, num_asked, num_values = _SIZES[kind]
        sentences = [rng.choice(FILLER)] if kind == "filler" or not prose else prose
        wording, keys = of_prose(rng), distinct(rng, num_keys)
        held = iter(values(rng, num_keys * num_values))
        found = {key: [next(held) for _ in range(num_values)] for key in keys}
        needles = []
        for key in keys:
            places = sorted(rng.random() for _ in range(num_values))  # an answer has the order of the text
            needles += [(place, wording.states(key, value)) for place, value in zip(places, found[key], strict=True)]
        asked = rng.sample(keys, num_asked)
        answers = [value for key in asked for value in found[key]]
        return cls(
            sentences,
            rng.randrange(len(sentences)),
            needles,
            wording.asks(rng, asked, num_values),
            wording.answers(rng, asked, answers),
        )

    def row(self, units: int) -> Row:
        texts = [self.sentences[(self.start + i) % len(self.sentences)] for i in range(units)]
        for place, needle in sorted(self.needles, reverse=True):
            texts.insert(int(place * (units + 1)), needle)
        return {"document": " ".join(texts), "question": self.question, "answer": self.answer}


@dataclass(frozen=True)
class LineDraw(Draw):
    """A line among so many other lines of its form.

    Attributes:
        seed: of the other lines.
        place: of the asked one, 0 the start and 1 the end.
        wording: of all lines.
        question: for one line.
    """

    seed: int
    place: float
    wording: Wording
    question: int

    @classmethod
    def of(cls, rng: Random) -> "LineDraw":
        """Draws place and wording."""
        return cls(rng.getrandbits(63), rng.random(), of_lines(rng), rng.getrandbits(63))

    def row(self, units: int) -> Row:
        keys, held = (draw(Random(self.seed), units + 1) for draw in (distinct, values))
        asked, *lines = zip(keys, held, strict=True)  # the first one drawn is the same at every length
        lines.insert(round(self.place * len(lines)), asked)
        rng = Random(self.question)
        return {
            "document": "\n".join(self.wording.states(key, value) for key, value in lines),
            "question": self.wording.asks(rng, asked[:1], 1),
            "answer": self.wording.answers(rng, asked[:1], asked[1:]),
        }


def draw_needles(kind: str, prose: Sequence[str], rng: Random) -> Draw:
    """A drawn row of a kind of `KINDS`; without prose the haystack is filler."""
    return LineDraw.of(rng) if kind == "lines" else NeedleDraw.of(kind, prose, rng)
