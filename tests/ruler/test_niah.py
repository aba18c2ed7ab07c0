"""niah_single_1 and niah_multikey_2 against RULER's texts, to the space."""

import re

import pytest

from lrsa_lightning.ruler import TASKS, make_samples

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = re.compile(r"One of the special magic numbers for (.+) is: (\d{7})\.")
INPUT = re.compile(
    r"A special magic number is hidden within the following text\. Make sure to memorize it\. "
    r"I will quiz you about the number afterwards\.\n(?P<context>.*)\n"
    r"What is the special magic number for (?P<query>.+) mentioned in the provided text\?",
    re.DOTALL,
)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("template", ["base", "chatml"])
def test_texts(tokenizer, task, template):
    before, after = ("", "") if template == "base" else ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    for sample in make_samples(task, tokenizer, 4096, 4, template=template):
        assert sample["input"].startswith(before)
        assert sample["input"].endswith(after)
        match = INPUT.fullmatch(sample["input"][len(before) : len(sample["input"]) - len(after)])
        query, (value,) = match["query"], sample["outputs"]
        assert sample["answer_prefix"] == f" The special magic number for {query} mentioned in the provided text is"
        lines = match["context"].split("\n")
        assert lines.count(f"One of the special magic numbers for {query} is: {value}.") == 1
        needles = [NEEDLE.fullmatch(line) for line in lines]
        if task == "niah_single_1":
            assert [line for line, needle in zip(lines, needles, strict=True) if not needle] == [NOISE] * (
                len(lines) - 1
            )
        else:
            assert all(needles)
            assert sum(needle[1] == query for needle in needles) == 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("max_length", [1024, 4096])
def test_budget_is_kept_and_filled(tokenizer, task, max_length):
    for sample in make_samples(task, tokenizer, max_length, 8):
        tokens = len(tokenizer(sample["input"] + sample["answer_prefix"])["input_ids"])
        assert sample["length"] == tokens + 128
        assert 0.95 * max_length <= sample["length"] <= max_length


def test_samples_depend_on_their_index_only(tokenizer):
    few = make_samples("niah_multikey_2", tokenizer, 1024, 2)
    assert make_samples("niah_multikey_2", tokenizer, 1024, 5)[:2] == few
    assert make_samples("niah_multikey_2", tokenizer, 1024, 2, seed=1)[0]["outputs"] != few[0]["outputs"]
    assert len({row["id"] for row in make_samples("niah_single_1", tokenizer, 1024, 5)}) == 5


def test_needles_lie_everywhere(tokenizer):
    samples = make_samples("niah_single_1", tokenizer, 2048, 40)
    places = []
    for sample in samples:
        lines = INPUT.fullmatch(sample["input"])["context"].split("\n")
        places.append(next(i for i, line in enumerate(lines) if line != NOISE) / len(lines))
    assert min(places) < 0.1
    assert max(places) > 0.85
    for sample, place in zip(samples, places, strict=True):
        assert abs(sample["depths"][0] - place) < 0.1


@pytest.mark.parametrize("task", TASKS)
def test_a_length_that_cannot_hold_the_text_is_refused(tokenizer, task):
    with pytest.raises(ValueError, match=f"{task} at length 160"):
        make_samples(task, tokenizer, 160, 1)


def test_an_unknown_task_is_refused(tokenizer):
    with pytest.raises(ValueError, match="niah_single_1"):
        make_samples("niah_single_9", tokenizer, 4096, 1)
