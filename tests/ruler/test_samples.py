"""What all tasks have in common: budgets, new tokens, metrics, ids, stable subsets, refusals."""

import copy
import random

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler import TASKS, make_samples, score_predictions
from tests.ruler.conftest import ALL_TASKS, AROUND, NIAH, count_tokens

NEW_TOKENS = {**dict.fromkeys(NIAH, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
# Lengths of which a unit is less than a twentieth with the tests' tokenizer. cwe's example alone has 2000 tokens.
LENGTHS = {**dict.fromkeys(ALL_TASKS, (2048, 4096)), "cwe": (2048, 8192), "qa_1": (4096, 8192), "qa_2": (4096, 8192)}
# Of the official files, and beside them.
FIELDS = {"index", "input", "outputs", "length", "length_w_model_temp", "answer_prefix"}
OUR_FIELDS = {"id", "task", "answer", "depths"}


def test_there_are_13_tasks():
    assert [*TASKS] == ALL_TASKS


@pytest.mark.parametrize("task", ALL_TASKS)
def test_new_tokens_and_metric(task):
    assert TASKS[task].tokens_to_generate == NEW_TOKENS[task]
    assert TASKS[task].metric("a", ["a", "b"]) == (1 if task.startswith("qa") else 0.5)


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize(("task", "max_length"), [(task, length) for task in ALL_TASKS for length in LENGTHS[task]])
def test_the_budget_is_kept_and_filled(samples, tokenizer, task, max_length, template):
    for sample in samples(task, max_length, 8, template):
        tokens = count_tokens(tokenizer, sample["input"] + sample["answer_prefix"])
        assert sample["length"] == sample["length_w_model_temp"] == tokens + NEW_TOKENS[task]
        assert 0.95 * max_length <= sample["length"] <= max_length


@pytest.mark.parametrize("task", ALL_TASKS)
def test_fields(samples, task):
    rows = samples(task, LENGTHS[task][1], 4)
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert {*row} >= FIELDS | OUR_FIELDS
        assert ("token_position_answer" in row) == (task in NIAH)
        assert row["task"] == task
        assert row["answer"].startswith(" ")
        assert score_predictions(task, [row["answer"]], [row["outputs"]]) == 100
        assert len(row["depths"]) == (0 if task in ("cwe", "fwe", "qa_2") else len(row["outputs"]))
        assert all(0 <= depth <= 1 for depth in row["depths"])


def test_ids_are_unique(samples):
    sets = [samples(task, LENGTHS[task][1], 4) for task in ALL_TASKS]
    sets += [samples("niah_single_1", 2048, 4), samples("niah_single_1", 2048, 4, seed=1)]
    ids = [row["id"] for rows in sets for row in rows]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_samples_do_not_depend_on_how_many_there_are(samples, task):
    max_length = LENGTHS[task][1]
    many = samples(task, max_length, 8)
    for count in (1, 3):
        assert samples(task, max_length, count) == many[:count]
    assert len({row["input"] for row in many}) == 8


@pytest.mark.parametrize("task", ALL_TASKS)
def test_samples_depend_on_seed_and_length(samples, task):
    short, long = LENGTHS[task]
    base = samples(task, short, 4)
    other_seed, other_length = samples(task, short, 4, seed=1), samples(task, long, 4)
    if task.startswith("qa"):
        assert [row["depths"] or row["input"] for row in base] != [row["depths"] or row["input"] for row in other_seed]
    else:
        assert all(a["outputs"] != b["outputs"] for a, b in zip(base, other_seed, strict=True))
        assert all(a["outputs"] != b["outputs"] for a, b in zip(base, other_length, strict=True))


def test_samples_leave_the_random_state_alone(tokenizer):
    random.seed(5)
    make_samples("vt", tokenizer, 2048, 1)
    assert random.random() == random.Random(5).random()


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("kind", ["bpe", "byte", "word"])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_every_task_and_tokenizer_gets_samples_or_a_refusal(request, source_files, task, kind, template):
    tokenizer = request.getfixturevalue({"bpe": "tokenizer"}.get(kind, f"{kind}_tokenizer"))
    try:
        rows = make_samples(task, tokenizer, 1024, 4, template=template, **source_files)
    except InputError as refusal:
        assert f"{task} at length 1024" in str(refusal)  # noqa: PT017  either is fine
        assert kind != "word"
    else:
        assert all(row["length"] <= 1024 for row in rows)
        assert [row["length"] for row in rows] == [
            count_tokens(tokenizer, row["input"] + row["answer_prefix"]) + NEW_TOKENS[task] for row in rows
        ]


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("max_length", [1, 70, 160])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_length_that_cannot_hold_the_text_is_refused(tokenizer, source_files, task, max_length):
    with pytest.raises(InputError, match=f"{task} at length {max_length}"):
        make_samples(task, tokenizer, max_length, 1, **source_files)


def test_an_unknown_task_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"niah_single_9.*niah_single_1.*qa_2"):
        make_samples("niah_single_9", tokenizer, 4096, 1)


def test_chatml_needs_a_chat_template(tokenizer):
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        make_samples("niah_single_1", plain, 1024, 1, template="chatml")
