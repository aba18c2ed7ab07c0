"""Divides the sources of questions into what is trained on and what an evaluation uses: no article is in both."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Split:
    """Two parts of each source, in its own format, by its name.

    Attributes:
        train: for training rows.
        held_out: for RULER.
    """

    train: dict[str, Any]
    held_out: dict[str, Any]


def split(contents: Mapping[str, Any], fraction: float) -> Split:
    """Holds out articles of SQuAD, questions of HotpotQA and the first words of the essays.

    The order of the files alone decides. Held-out articles are spread evenly over a file, so that they are of all its
    subjects. A question or article that has a title or a paragraph in common with a held-out one, of either file, is in
    neither part.

    Args:
        contents: of the files `squad`, `hotpotqa` and `essays`, as `read_content` gives them; each may be missing.
        fraction: of the questions, and of the words of the essays, that are held out.
    """
    held_out, taken = {}, set()
    for name in _PARTS.keys() & contents.keys():
        chosen = _evenly(_parts(name, contents[name]), fraction)
        held_out[name] = _with_parts(name, contents[name], chosen)
        taken.update(*(part.traits for part in chosen))
    train = {}
    for name in held_out:
        free = [part for part in _parts(name, contents[name]) if taken.isdisjoint(part.traits)]
        train[name] = _with_parts(name, contents[name], free)
    if "essays" in contents:
        words = contents["essays"]["text"].split()
        end = round(fraction * len(words))
        held_out["essays"], train["essays"] = ({"text": " ".join(part)} for part in (words[:end], words[end:]))
    return Split(train, held_out)


@dataclass(frozen=True)
class _Part:
    """An article of SQuAD or a question of HotpotQA.

    Attributes:
        content: in the file's format.
        num_questions: of SQuAD, those that have an answer.
        traits: its titles and paragraphs.
    """

    content: Any
    num_questions: int
    traits: frozenset[str]


def _articles(content: Mapping[str, Any]) -> Iterator[_Part]:
    for article in content["data"]:
        paragraphs = article["paragraphs"]
        count = sum(not qa["is_impossible"] for paragraph in paragraphs for qa in paragraph["qas"])
        titles = [article["title"].replace("_", " ")] if "title" in article else []
        yield _Part(article, count, frozenset([*titles, *(paragraph["context"] for paragraph in paragraphs)]))


def _hotpotqa(content: list[dict[str, Any]]) -> Iterator[_Part]:
    for row in content:
        paragraphs = ((title, f"{title}\n{''.join(sentences)}") for title, sentences in row["context"])
        yield _Part(row, 1, frozenset(trait for paragraph in paragraphs for trait in paragraph))


_PARTS = {"squad": _articles, "hotpotqa": _hotpotqa}


def _parts(name: str, content: Any) -> list[_Part]:
    return list(_PARTS[name](content))


def _with_parts(name: str, content: Any, parts: list[_Part]) -> Any:
    kept = [part.content for part in parts]
    return {**content, "data": kept} if name == "squad" else kept


def _evenly(parts: list[_Part], fraction: float) -> list[_Part]:
    """Parts that have this fraction of the questions, wherever the list is cut."""
    chosen, seen, taken = [], 0, 0
    for part in parts:
        seen += part.num_questions
        if taken < fraction * seen:
            chosen.append(part)
            taken += part.num_questions
    return chosen
