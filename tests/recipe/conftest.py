"""Small sources of a recipe. Each paragraph names itself, so a test finds it wherever it is."""

import json
from pathlib import Path
from random import Random

import pytest

_WORDS = ["river", "market", "lantern", "kettle", "bridge", "captain", "letter", "winter", "quiet", "wooden", "narrow"]


def paragraph(name: str, sentences: int = 3) -> str:
    """A text of a few sentences, the same each time, which holds the name as <name>."""
    rng = Random(name)
    texts = [f"The {' '.join(rng.choices(_WORDS, k=8))}." for _ in range(sentences)]
    return f"This is <{name}>. {' '.join(texts)}"


def squad_content(num_articles: int = 12) -> dict:
    """Articles of six paragraphs with two questions each, and a third one without an answer."""
    articles = []
    for a in range(num_articles):
        paragraphs = []
        for name in (f"s{a}.{p}" for p in range(6)):
            asked = {"is_impossible": False, "answers": [{"text": f"<{name}>"}, {"text": "else"}]}
            qas = [{"question": f"Question {i} of {name}?", **asked} for i in range(2)]
            qas.append({"question": f"Nothing of {name}?", "is_impossible": True, "answers": []})
            paragraphs.append({"context": paragraph(name), "qas": qas})
        articles.append({"title": f"Article_{a}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def hotpotqa_content(count: int = 24) -> list[dict]:
    """Questions of three paragraphs. Every fourth one shares a title with the one before, the last with an article."""
    rows = []
    for i in range(count):
        titles = [f"Title {i}.{p}" for p in range(3)]
        if i % 4 == 3:
            titles[2] = f"Title {i - 1}.0"
        if i == count - 1:
            titles[1] = "Article 0"
        context = [[title, [paragraph(title)]] for title in titles]
        rows.append({"question": f"Which is {i}?", "answer": f"<Title {i}.0>", "context": context})
    return rows


def essays_content() -> dict:
    """400 sentences, each with a number of its own."""
    return {"text": " ".join(f"Sentence <e{i}> is about the {_WORDS[i % len(_WORDS)]}." for i in range(400))}


def write_sources(folder: Path) -> dict[str, Path]:
    """The three sources as files of a folder."""
    contents = {"squad": squad_content(), "hotpotqa": hotpotqa_content(), "essays": essays_content()}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return {name: folder / f"{name}.json" for name in contents}


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("recipe"))
