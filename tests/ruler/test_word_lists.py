"""Common words (cwe) and frequent words (fwe) against RULER's texts and counts."""

import math
import re
from collections import Counter
from importlib.resources import files
from random import Random

import pytest

from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.cwe import CommonWords
from lrsa_lightning.ruler.task_generator import Draws
from tests.ruler.conftest import AROUND, between, user_turn

CWE_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
CWE_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FWE_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
FWE_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"


def unnumbered(text: str) -> list[str]:
    """The words of ``1. a 2. b c``: some hold spaces."""
    words = re.findall(r"\d+\. (\D+?)(?= \d+\. |$)", text)
    assert " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1)) == text
    return words


def check_counts(words: list[str], answer: list[str], common: int, uncommon: int) -> int:
    """The number of distinct words. Ten of them are common."""
    counts = Counter(words)
    assert len(set(answer)) == len(answer) == 10
    assert {word: counts.pop(word) for word in answer} == dict.fromkeys(answer, common)
    assert set(counts.values()) <= {uncommon}
    # In a random order: the common words do not come first.
    assert not counts or {*counts} & {*words[: len(words) // 2]}
    return 10 + len(counts)


def parse_cwe(sample: dict, template: str = "base") -> tuple[list[str], list[str], list[str]]:
    """The example's words and answer, and the words, after a check of all else."""
    before, after = AROUND[template]
    head, tail = before + CWE_HEAD, CWE_QUESTION + after + CWE_PREFIX
    prompt = sample["input"] + sample["answer_prefix"]
    example, answer, words = re.fullmatch(
        re.escape(head) + "(.+)" + re.escape(tail + " ") + "(.+)\n" + re.escape(head) + "(.+)" + re.escape(tail),
        prompt,
    ).groups()
    assert sample["answer_prefix"] == CWE_PREFIX
    return unnumbered(example), unnumbered(answer), unnumbered(words)


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize(
    ("max_length", "counts", "size", "example_counts"), [(2048, (6, 1), 20, (3, 1)), (8192, (30, 3), 40, (10, 3))]
)
def test_cwe(samples, max_length, counts, size, example_counts, template):
    for sample in samples("cwe", max_length, 4, template):
        example, answer, words = parse_cwe(sample, template)
        assert check_counts(example, answer, *example_counts) == size
        assert check_counts(words, sample["outputs"], *counts) > 10
        assert sample["answer"] == " " + " ".join(f"{i}. {word}" for i, word in enumerate(sample["outputs"], start=1))


@pytest.mark.parametrize(("max_length", "common", "size"), [(4095, 6, 20), (4096, 30, 40)])
def test_cwe_counts_change_at_4096(word_tokenizer, max_length, common, size):
    for sample in make_samples("cwe", word_tokenizer, max_length, 2):
        example, _, words = parse_cwe(sample)
        assert len(set(example)) == size
        assert Counter(words)[sample["outputs"][0]] == common


def test_cwe_draws_from_wonderwords_and_anew(samples):
    folder = files("wonderwords") / "assets"
    pool = set("\n".join((folder / f"{k}list.txt").read_text() for k in ("noun", "adjective", "verb")).split("\n"))
    parsed = [parse_cwe(sample) for sample in samples("cwe", 2048, 4)]
    assert all({*example, *words} <= pool for example, _, words in parsed)
    assert len({tuple(answer) for _, answer, _ in parsed}) == 4


def test_cwe_draws_from_english_words_beyond_its_pool():
    """The pool has 8166 words."""
    english = [f"english{'abcdefghij'[i % 10]}{i}x" for i in range(9000)]
    generator = CommonWords(131072, english)
    assert generator.max_units == 9000
    few, many = (generator.generate(Draws(Random(0)), units) for units in (8166, 8167))
    assert not {*few.outputs} & {*english}
    assert {*many.outputs} <= {*english}
    counts = Counter(re.findall(r"\d\. (\S+)", many.user))
    assert {*counts} <= {*english}
    assert sorted(counts.values(), reverse=True) == [30] * 10 + [3] * 8157


def test_cwe_of_more_words_than_there_are_needs_english_words(word_tokenizer, source_files):
    """A number and its word are two tokens here, so that all 8166 words, three times each, are some 50,000."""
    with pytest.raises(ValueError, match="english_words"):
        make_samples("cwe", word_tokenizer, 56000, 1)
    english = {"english_words": source_files["english_words"]}
    (sample,) = make_samples("cwe", word_tokenizer, 52000, 1, **english)
    assert all(word.startswith("english") for word in sample["outputs"])
    assert 0.95 * 52000 <= sample["length"] <= 52000


def fwe_counts(num_words: int, vocabulary: int) -> list[int]:
    zeta = math.pi**2 / 6
    counts = [int(num_words * rank**-2 / zeta) for rank in range(1, vocabulary + 1)]
    return [count for count in counts if count]


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("max_length", [1024, 4096])
def test_fwe(samples, max_length, template):
    answers = set()
    for sample in samples("fwe", max_length, 8, template):
        assert sample["answer_prefix"] == FWE_PREFIX
        words = between(user_turn(sample, template), FWE_HEAD, FWE_QUESTION).split(" ")
        ranks = Counter(words).most_common()
        counts = [count for _, count in ranks]
        assert ranks[0][0] == "..."
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranks[1:])
        vocabulary = (max_length - 50) // 50
        sizes = range(int(counts[0] * 1.6), int((counts[0] + 1) * 1.7))
        assert counts in [fwe_counts(size, vocabulary) for size in sizes]
        assert sample["outputs"] == [word for word, _ in ranks[1:4]]
        assert counts[1] > counts[2] > counts[3] > counts[4]
        a, b, c = sample["outputs"]
        assert sample["answer"] == f" {a}, {b}, and {c}"
        assert words[: counts[0]] != ["..."] * counts[0]
        answers.update(sample["outputs"])
    assert len(answers) == 24


def test_fwe_has_a_vocabulary_of_a_fiftieth_of_the_tokens(word_tokenizer):
    """Where a word is a token, words enough occur for all of it to be seen."""
    sample = make_samples("fwe", word_tokenizer, 1024, 1)[0]
    assert len(set(between(sample["input"], FWE_HEAD, FWE_QUESTION).split(" "))) == (1024 - 50) // 50
