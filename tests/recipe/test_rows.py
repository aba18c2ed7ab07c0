"""Rows of a recipe: what they ask can be answered, from the text alone, and they fill their length."""

import json
import re
from itertools import product

import pytest

from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.errors import InputError
from lrsa_lightning.recipe.folder import Recipe, make_folder
from lrsa_lightning.recipe.maker import RowMaker, make_rows
from lrsa_lightning.recipe.needles import KINDS, draw_needles
from lrsa_lightning.recipe.rows import Fitter, seeded
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.sources import read_content

LENGTH = 2400


@pytest.fixture(scope="module")
def maker(files, tokenizer):
    contents = {name: read_content(name, path) for name, path in files.items()}
    return RowMaker(contents, Fitter.of(tokenizer, "chatml", LENGTH), "7:train", 0.5)


@pytest.fixture(scope="module")
def made(maker):
    return list(make_rows(maker, 72, 1))


def test_each_kind_comes_as_often_as_it_should(made):
    kinds = [row.kind for row in made]
    assert kinds.count("question") == 36
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 6)


def test_rows_fill_their_length_and_none_is_dropped(made, tokenizer, tokenizer_dir, tmp_path):
    """The datamodule of a run takes them all."""
    assert all(row.tokens <= LENGTH for row in made)
    assert sum(row.tokens for row in made) > 0.93 * LENGTH * len(made)
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row.row) + "\n" for row in made), encoding="utf-8")
    keys = {"tokenizer": str(tokenizer_dir), "template": "chatml", "seq_len": LENGTH, "extend": False}
    module = LongContextDataModule([str(file)], cache_dir=str(tmp_path), num_workers=0, prepare_workers=1, **keys)
    module.prepare_data()
    prepared = module.prepare("train")
    assert [length - 1 for length in prepared.num_ids] == [row.tokens for row in made]


def test_a_questions_answer_is_in_its_own_document_among_others(made):
    for row in (row.row for row in made if row.kind == "question"):
        assert row["answer"].removesuffix(".") in row["document"]
        assert row["document"].count("This is <") >= 4


@pytest.mark.parametrize(("kind", "seed"), product(KINDS, range(12)))
def test_what_is_asked_for_stands_in_the_text_at_any_length(kind, seed):
    """All values of the answer are in the text, in its order, in sentences or lines that name the key."""
    draw = draw_needles(kind, [f"A sentence of number {i}." for i in range(50)], seeded("rows", kind, seed))
    for units in (0, 1, 40):
        row = draw.row(units)
        assert draw.row(units) == row
        held = re.findall(r"[\w-]+", row["answer"])
        values = [word for word in held if word in row["document"] and re.search(r"\d|_", word)]
        assert len(values) >= {"values": 3, "queries": 3}.get(kind, 1)
        if kind == "values":
            places = [row["document"].index(value) for value in values]
            assert places == sorted(places)
        lines = row["document"].splitlines()
        if kind == "lines":
            assert len(lines) == units + 1
            asked = [line for line in lines if values[-1] in line]
            assert re.search(r"[\w-]+", asked[0])[0] in row["question"] + "- entry"


def test_no_word_of_rulers_needles_is_used(made, tokenizer):
    [sample] = make_samples("niah_single_1", tokenizer, 1024, 1)
    for phrase in ("special magic", "mentioned in the provided text", "hidden within", "The grass is green"):
        assert phrase in sample["input"]
        assert not any(phrase in " ".join(row.row.values()) for row in made)


def test_rows_depend_on_seed_and_number_alone(maker, made):
    assert [maker(i) for i in (5, 0, 41)] == [made[i] for i in (5, 0, 41)]
    assert list(make_rows(maker, 12, 2)) == made[:12]
    other = RowMaker(maker.contents, maker.fitter, "8:train", 0.5)
    assert all(other(i).row != made[i].row for i in range(8))


def test_without_sources_there_are_needles_alone(tokenizer):
    made = list(make_rows(RowMaker({}, Fitter.of(tokenizer, "base", 900), "7", 0.5), 12, 1))
    assert {row.kind for row in made} == {*KINDS}


def test_a_length_without_room_is_refused(files, tokenizer, tmp_path):
    with pytest.raises(InputError, match="--length 20 is too short: no question fits"):
        make_folder(Recipe(length=20), {"squad": files["squad"]}, tokenizer, tmp_path / "a", 1)
    with pytest.raises(InputError, match="--length 20 is too short: a row of kind"):
        make_folder(Recipe(length=20), {}, tokenizer, tmp_path / "b", 1)
