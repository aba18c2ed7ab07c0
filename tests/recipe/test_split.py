"""What is trained on and what an evaluation uses have no article in common."""

import json
import re

import pytest

from lrsa_lightning.recipe.folder import Recipe, make_folder
from lrsa_lightning.recipe.split import split
from lrsa_lightning.ruler import make_samples
from tests.recipe.conftest import essays_content, hotpotqa_content, squad_content


def names_in(text: str) -> set[str]:
    """The paragraphs and sentences of the sources that a text holds."""
    return set(re.findall(r"<([^>]+)>", text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, files, tokenizer):
    folder = tmp_path_factory.mktemp("made")
    make_folder(Recipe(length=1600, num_rows=60, num_val_rows=6, held_out=0.5), files, tokenizer, folder, 1)
    return folder


@pytest.mark.parametrize(("task", "source"), [("qa_1", "squad"), ("qa_2", "hotpotqa"), ("niah_single_2", "essays")])
def test_no_text_of_an_evaluation_is_trained_on(folder, tokenizer, task, source):
    """The evaluation uses the folder's own file: its questions, their documents and all others around them."""
    samples = make_samples(task, tokenizer, 2600, 10, **{source: folder / f"{source}.json"})
    evaluated = names_in(json.dumps([(sample["input"], sample["outputs"]) for sample in samples]))
    trained = names_in((folder / "train.jsonl").read_text(encoding="utf-8"))
    kind = {"squad": "s", "hotpotqa": "Title", "essays": "e"}[source]
    assert sum(name.startswith(kind) for name in evaluated) >= 4
    assert sum(name.startswith(kind) for name in trained) >= 4
    assert not evaluated & trained


def test_rows_to_validate_on_are_of_the_evaluations_side(folder):
    validated, trained = (names_in((folder / f"{name}.jsonl").read_text(encoding="utf-8")) for name in ("val", "train"))
    assert validated
    assert not validated & trained


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_held_out_questions_have_their_fraction_and_are_spread_over_the_file(fraction):
    parts = split({"squad": squad_content(40)}, fraction)
    articles = [int(article["title"].split("_")[1]) for article in parts.held_out["squad"]["data"]]
    assert len(articles) == 40 * fraction
    assert all(sum(first <= a < first + 8 for a in articles) == 8 * fraction for first in range(0, 40, 8))
    assert len(parts.train["squad"]["data"]) == 40 - len(articles)


def test_the_sides_share_no_title_or_paragraph_of_either_file():
    """A question of HotpotQA that has a title in common with the other side is in neither."""
    contents = {"squad": squad_content(), "hotpotqa": hotpotqa_content()}
    parts = split(contents, 0.5)
    titles = [
        {article["title"].replace("_", " ") for article in side["squad"]["data"]}
        | {title for row in side["hotpotqa"] for title, _ in row["context"]}
        for side in (parts.train, parts.held_out)
    ]
    assert not titles[0] & titles[1]
    both = len(parts.train["hotpotqa"]) + len(parts.held_out["hotpotqa"])
    assert len(contents["hotpotqa"]) - 8 < both < len(contents["hotpotqa"])
    assert split(contents, 0.5) == parts


def test_essays_are_held_out_from_their_start():
    """RULER reads them from there: no prompt of up to half of the text is changed."""
    content = essays_content()
    parts = split({"essays": content}, 0.3)
    assert content["text"] == f"{parts.held_out['essays']['text']} {parts.train['essays']['text']}"
    assert len(parts.held_out["essays"]["text"].split()) == round(0.3 * len(content["text"].split()))
