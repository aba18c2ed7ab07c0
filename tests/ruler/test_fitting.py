"""The search for the largest haystack."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsa_lightning.ruler.fitting import DoesNotFit, largest_fit

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
def test_the_search_ends_with_random_lengths(data, unit, budget, guess, most):
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
