"""Arguments outside the ranges of their annotations, in Python."""

from collections.abc import Sequence
from typing import Literal

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import DecayRate, PositiveFiniteFloat, PositiveInt, PositiveUnitInterval, checked


class Example:
    @checked
    def __init__(
        self,
        count: PositiveInt = 1,
        betas: tuple[DecayRate, DecayRate] = (0.9, 0.95),
        most: PositiveInt | None = None,
        rates: Sequence[PositiveFiniteFloat] = (),
        shares: dict[str, PositiveUnitInterval] | None = None,
        kind: Literal["a", "b"] = "a",
        files: str | Sequence[str] = (),
        number: str | PositiveInt = "all",
        names: Sequence[str] | None = None,
    ):
        self.arguments = (count, betas, most, rates, shares, kind, files, number)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "Example.count is 0, but must be a whole number of at least 1"),
        ({"count": True}, "Example.count is True"),
        ({"count": "3"}, "Example.count is '3'"),
        ({"count": 2.5}, "Example.count is 2.5"),
        ({"count": float("nan")}, "Example.count is nan"),
        ({"betas": (0.9, 1.0)}, "Example.betas is 1.0, but must be a number of at least 0 and below 1"),
        ({"betas": (0.9,)}, r"Example.betas is \(0.9,\), but must hold 2 values"),
        ({"most": -1}, "Example.most is -1"),
        ({"rates": [1.0, float("inf")]}, "Example.rates is inf, but must be a finite number above 0"),
        ({"shares": {"x": 1.5}}, r"Example.shares\['x'\] is 1.5"),
        ({"kind": "c"}, "Example.kind is 'c', but must be one of 'a', 'b'"),
        ({"number": 0}, "Example.number is 0"),
        ({"rates": 0.5}, "Example.rates is 0.5, but must be a list"),
        ({"names": "one"}, "Example.names is 'one', but must be a list, even of one value"),
    ],
)
def test_a_value_out_of_range_is_named(arguments, said):
    with pytest.raises(InputError, match=said):
        Example(**arguments)


def test_valid_values_arrive_as_plain_numbers():
    given = Example(PositiveInt(3), [0.5, 0.5], PositiveInt(2), (1,), {"x": 1}, "b", ["f"], "some").arguments
    assert given == (3, [0.5, 0.5], 2, (1.0,), {"x": 1.0}, "b", ["f"], "some")
    assert type(given[0]) is int  # a checkpoint with the parser's own type cannot be loaded with weights_only
    assert type(given[2]) is int
    assert Example().arguments[2] is None


def test_a_function_is_named_by_its_own_name():
    @checked
    def count(most: PositiveInt) -> int:
        return most

    assert count(PositiveInt(2)) == 2
    with pytest.raises(InputError, match=r"^count\.most is 0"):
        count(0)
