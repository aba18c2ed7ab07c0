"""What a checkpoint keeps comes back under weights_only; what cannot is named, with what to keep instead."""

import io
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lrsa_lightning.checkpoints.plain_state import LEFT_OUT, check_plain, plain_checkpoint, to_plain
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveInt


class Level(IntEnum):
    HIGH = 3


class Colour(Enum):
    RED = "red"


class Name(str):
    __slots__ = ()


Pair = namedtuple("Pair", "first second")


@dataclass
class Note:
    text: str


def loaded(value):
    """The value that torch loads with weights_only."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("kept", "plain"),
    [
        (np.float64(1.5), 1.5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (PositiveInt(4), 4),
        (Level.HIGH, 3),
        (Name("x"), "x"),
        (Path("runs/x"), "runs/x"),
        (Pair(1, np.int64(2)), (1, 2)),
        (frozenset([1]), {1}),
        (defaultdict(list, a=[np.int8(1)]), {"a": [1]}),
        ({np.int64(5): Path("a")}, {5: "a"}),
        (OrderedDict(a=np.float64(2)), OrderedDict(a=2.0)),
        (Counter(a=np.int64(2)), Counter(a=2)),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_harmless_values_come_back_as_plain_ones(kept, plain, nested):
    kept, plain = ({"a": [(kept,)]}, {"a": [(plain,)]}) if nested else (kept, plain)
    back = loaded(to_plain(kept, "it"))
    assert back == plain
    assert type(back) is type(plain)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(3, dtype=">i4"),
        np.array(True),
        np.broadcast_to(np.ones(1), 3),
        np.eye(2).T,
    ],
)
def test_arrays_come_back_as_tensors(array):
    back = loaded(to_plain([array], "it"))[0]
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_what_is_plain_stays_itself():
    state = OrderedDict(w=torch.ones(2))
    state._metadata = {"version": 1}
    value = {"state": state, "n": [1, 2.5, None, "a", b"b", True, (1j,), {3}], "d": torch.float32, "s": torch.Size([2])}
    assert to_plain(value, "it") is value
    check_plain(value, "it")


@pytest.mark.parametrize(
    ("kept", "form"),
    [
        (Note("a"), r"dataclasses\.asdict"),
        (Colour.RED, r"its \.value"),
        (datetime(2026, 1, 1), r"its \.isoformat"),
        (timedelta(1), r"total_seconds"),
        (deque([1]), "a list of its items"),
        (Fraction(1, 2), "numbers, text"),
        (np.array(["a"]), "an array of numbers"),
        (np.ma.array([1]), "an array of numbers"),
        (lambda: 0, "numbers, text"),
        (10**1000, "numbers, text"),
        (torch.Generator(), "numbers, text"),
        ({frozenset([1])}, "numbers, text"),
    ],
)
def test_what_has_no_plain_form_is_named(kept, form):
    with pytest.raises(InputError, match=rf"callbacks\['Mine'\]\['best'\]\[1\].* is a \w+ \(keep .*{form}"):
        check_plain({"fine": 1, "best": [0, kept]}, "callbacks['Mine']")


def test_two_keys_that_would_become_one_are_refused():
    with pytest.raises(InputError, match="the key PosixPath"):
        check_plain({Path("a"): 1, "a": 2}, "it")


def test_a_checkpoint_leaves_out_what_it_can_do_without():
    checkpoint = {"global_step": np.int64(2), "callbacks": {"A": {"x": 1}, "B": {"y": Colour.RED}}, "mine": Note("a")}
    plain, left_out = plain_checkpoint(checkpoint)
    assert plain == {"global_step": 2, "callbacks": {"A": {"x": 1}}, LEFT_OUT: ["mine", "callbacks['B']"]}
    assert "callbacks['B']['y'] is a Colour" in left_out
    assert checkpoint["callbacks"]["B"] == {"y": Colour.RED}
    assert plain_checkpoint({"global_step": 2}) == ({"global_step": 2}, "")
    with pytest.raises(InputError, match="lr_schedulers"):
        plain_checkpoint({"lr_schedulers": [Colour.RED]})
