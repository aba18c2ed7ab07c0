"""The search for the largest haystack."""

from hypothesis import given
from hypothesis import strategies as st

from lrsa_lightning.ruler.fitting import largest_fit


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=300),
    st.integers(0, 50),
    st.integers(0, 400),
    st.integers(0, 2000),
)
def test_largest_fit(sizes, base, room, guess):
    budget = base + room
    probes = []

    def count(units: int) -> int:
        probes.append(units)
        return base + sum(sizes[i % len(sizes)] for i in range(units))

    found = largest_fit(lambda units: units, count, budget, guess)
    size = base + sum(sizes[i % len(sizes)] for i in range(found))
    assert size <= budget < size + sizes[found % len(sizes)]
    assert len(probes) < 40
