"""The search for the largest haystack: ours, and the official code's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsa_lightning.ruler.fitting import DoesNotFit, largest_fit, official_fit, official_units
from lrsa_lightning.ruler.task_generator import OfficialSteps, TooFewUnits

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=300)


class Toy:
    """A prompt of so many tokens and units of the given sizes, over and over."""

    def __init__(self, base: int, sizes: list[int]):
        self.base, self.sizes, self.built = base, sizes, []

    def build(self, units: int) -> str:
        self.built.append(units)
        return f"{units} units"

    def tokens(self, units: int) -> int:
        return self.base + sum(self.sizes) * (units // len(self.sizes)) + sum(self.sizes[: units % len(self.sizes)])

    def count(self, prompt: str) -> int:
        return self.tokens(int(prompt.split()[0]))


@given(sizes, st.integers(0, 50), st.integers(0, 400), st.integers(0, 2000), st.integers(0, 20), st.integers(0, 300))
def test_largest_fit(sizes, base, room, guess, least, further):
    """Without a limit, and with one: nothing larger fits, and the prompt of the answer is not built anew."""
    for most in (None, least + further):
        toy = Toy(base, sizes)
        budget = toy.tokens(least) + room
        found = largest_fit(toy.build, toy.count, budget, guess, least, most)
        assert found.prompt == f"{found.units} units"
        assert found.tokens == toy.tokens(found.units) <= budget
        assert found.units == most or toy.tokens(found.units + 1) > budget
        assert all(least <= units and (most is None or units <= most) for units in toy.built)
        assert len(toy.built) < 40
        assert len(set(toy.built)) == len(toy.built)


@given(sizes, st.integers(0, 50), st.integers(1, 4000), st.integers(0, 2000), st.floats(0.5, 1))
def test_enough_ends_the_search(sizes, base, room, guess, enough):
    toy = Toy(base, sizes)
    found = largest_fit(toy.build, toy.count, base + room, guess, enough=enough)
    assert found.tokens <= base + room
    assert found.tokens >= enough * (base + room) or toy.tokens(found.units + 1) > base + room


@given(st.integers(0, 20), st.integers(1, 100))
def test_the_least_prompt_fits_or_is_refused(least, base):
    toy = Toy(base, [3])
    assert largest_fit(toy.build, toy.count, toy.tokens(least), 50, least).units == least
    with pytest.raises(DoesNotFit, match=f"{toy.tokens(least)} tokens"):
        largest_fit(toy.build, toy.count, toy.tokens(least) - 1, 50, least)


@given(st.data(), st.integers(1, 9), st.integers(0, 2000), st.integers(0, 300), st.sampled_from([None, 50, 5000]))
def test_draws_that_vary_end_as_well(data, unit, budget, guess, most):
    """More units may be shorter: each draw is up to twice as long as another one."""
    drawn = {}

    def build(units: int) -> int:
        assert len(drawn) < 300
        if units not in drawn:
            drawn[units] = int(unit * units * data.draw(st.floats(1, 2)))
        return drawn[units]

    found = largest_fit(build, lambda tokens: tokens, budget, guess, most=most)
    assert found.tokens == drawn[found.units] <= budget
    assert most is None or found.units <= most


def search(tokens_of, max_length: int, steps: OfficialSteps, new_tokens: int = 0) -> tuple[int, list[int]]:
    """The units found, and those tried."""
    tried = []

    def note(units: int) -> int:
        tried.append(units)
        return tokens_of(units)

    return official_units(note, steps, max_length - new_tokens, max_length), tried


def test_official_bisection_begins_between_a_step_and_three_times_the_estimate():
    """25 lines of 10 tokens and 50 around them: 12 tokens a line, 83 lines, 249 at most."""
    found, tried = search(lambda units: 50 + 10 * units, 1000, OfficialSteps(25, 25), new_tokens=128)
    assert found == 82
    assert tried[:4] == [25, (25 + 250) // 2, (25 + 136) // 2, (81 + 136) // 2]


def test_official_bisection_of_words_and_of_a_task_with_an_example():
    # cwe: twice the estimate, from 4096 words. 5 tokens a word: 200 words, 400 at most.
    found, tried = search(lambda units: 5 * units, 1000, OfficialSteps(10, 4096, most=2))
    assert (found, tried[:2]) == (200, [4096, 205])
    # vt: the estimate leaves the example out. 10 tokens a line: 100 lines, 300 at most.
    found, tried = search(lambda units: 500 + 10 * units, 1000, OfficialSteps(10, 10, beside=500))
    assert (found, tried[:2]) == (50, [10, 155])


def test_official_bisection_finds_no_less_than_a_step():
    assert search(lambda units: 1000 * units, 900, OfficialSteps(5, 5))[0] == 5


def test_official_bisection_takes_too_few_documents_for_a_fit():
    def tokens_of(units: int) -> int:
        if units < 10:
            raise TooFewUnits
        return 100 * units

    assert search(tokens_of, 1500, OfficialSteps(5, 10))[0] == 15


def test_official_growth_stops_a_step_before_the_budget():
    """fwe: from a sixth of the budget by a thirty-second, until the text is as long as the budget."""
    steps = OfficialSteps(960 // 32, 960 // 6, most=None)
    found, tried = search(lambda units: 2 * units, 960, steps)
    assert found == 460  # 490 words are more than 960 tokens
    assert tried == [*range(160, 491, 30)]
    # 480 words are exactly 960: not shorter than the budget, so the step back is taken.
    assert search(lambda units: 2 * units, 960, OfficialSteps(32, 160, most=None))[0] == 448


def test_official_fit_takes_steps_until_it_fits():
    built = []
    lengths = {107: 1200, 82: 1100, 57: 900}
    found = official_fit(lambda units: built.append(units) or units, lengths.__getitem__, 1000, 107, 25)
    assert (found.units, found.tokens, built) == (57, 900, [107, 82, 57])


def test_official_fit_draws_again_where_it_cannot_take_a_step():
    lengths = iter([1200, 1100, 1050, 1001, 1000])
    found = official_fit(lambda units: units, lambda _: next(lengths), 1000, 40, 25)
    assert (found.units, found.tokens) == (15, 1000)


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("units", [3, 5, 7, 17])
def test_official_fit_gives_up(units):
    def too_few(units: int) -> int:
        raise TooFewUnits

    for build in (too_few, lambda units: units):
        with pytest.raises(DoesNotFit, match="1000 tokens"):
            official_fit(build, lambda _: 1001, 1000, units, 5)
