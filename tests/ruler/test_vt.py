"""Variable tracking against RULER's texts, to the space."""

import re

import pytest

from lrsa_lightning.ruler import make_samples
from tests.ruler.conftest import AROUND, between, count_tokens, user_turn

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the value "
    "{value}, they are: "
)
NUM_SAMPLES = 20


def parse(sample: dict, template: str = "base") -> tuple[str, list[str], str, list[str]]:
    """Value and lines of the example and of the question, after a check of all else."""
    user = user_turn(sample, template)
    # Chat templates stand around both: the example is in the user's turn.
    cut = user.index(HEAD, 1)
    value = re.search(r"the value (\d+) in", user[:cut])[1]
    names = re.search(r"they are:  ([A-Z]{3}(?: [A-Z]{3}){4})\n\n$", user[:cut])[1]
    tail = QUESTION.replace("{value}", value) + PREFIX.replace("{value}", value) + " " + names + "\n\n"
    example = between(user[:cut], HEAD, tail).split("\n")
    check_chain(example, value, names.split(" "))
    own_value = between(sample["answer_prefix"], *PREFIX.split("{value}"))
    lines = between(user[cut:], HEAD, QUESTION.replace("{value}", own_value)).split("\n")
    check_chain(lines, own_value, sample["outputs"])
    return value, example, own_value, lines


def check_chain(lines: list[str], value: str, names: list[str]) -> None:
    assert re.fullmatch(r"[1-9]\d{4}", value)
    assert len(set(names)) == 5
    a, b, c, d, e = names
    chain = [f"VAR {a} = {value}", f"VAR {b} = VAR {a} ", f"VAR {c} = VAR {b} ", f"VAR {d} = VAR {c} "]
    assert [line for line in lines if line != NOISE] == [*chain, f"VAR {e} = VAR {d} "]


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("max_length", [2048, 4096])
def test_texts(samples, max_length, template):
    for sample in samples("vt", max_length, NUM_SAMPLES, template):
        _, _, _, lines = parse(sample, template)
        assert all(re.fullmatch("[A-Z]{5}", name) for name in sample["outputs"])
        assert sample["answer"] == " " + " ".join(sample["outputs"])
        places = [i for i, line in enumerate(lines) if line != NOISE]
        depths = [(place - j) / (len(lines) - 5) for j, place in enumerate(places)]
        assert sample["depths"] == pytest.approx(depths)


def test_each_sample_has_its_own_example_of_one_size(samples):
    parsed = [parse(sample) for sample in samples("vt", 2048, NUM_SAMPLES)]
    assert len({tuple(example) for _, example, _, _ in parsed}) == NUM_SAMPLES
    assert len({value for value, _, own, _ in parsed for value in (value, own)}) == 2 * NUM_SAMPLES
    assert len({len(example) for _, example, _, _ in parsed}) == 1


def test_the_example_has_500_tokens(word_tokenizer):
    """Without its answer, at any length of the question."""
    for max_length in (1024, 4096):
        for sample in make_samples("vt", word_tokenizer, max_length, 2):
            end = sample["input"].index(" they are: ") + len(" they are: ")
            tokens = count_tokens(word_tokenizer, sample["input"][:end])
            assert 500 - count_tokens(word_tokenizer, NOISE) < tokens <= 500


def test_an_example_of_more_tokens_is_as_short_as_possible(samples):
    """Five lines of noise, so that five assignments have places of their own."""
    assert [len(parse(sample)[1]) for sample in samples("vt", 2048, NUM_SAMPLES)] == [10] * NUM_SAMPLES


def test_assignments_are_everywhere_in_the_context(samples):
    depths = [depth for sample in samples("vt", 4096, NUM_SAMPLES) for depth in sample["depths"]]
    assert min(depths) < 0.05
    assert max(depths) > 0.9
