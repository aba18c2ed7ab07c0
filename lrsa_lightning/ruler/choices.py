"""Checks of a user's lists: not empty, no value twice."""

from collections import Counter
from collections.abc import Sequence

from lrsa_lightning.errors import InputError


def check_choice(values: Sequence, name: str) -> None:
    """Checks that a list has a value and none twice.

    Raises:
        InputError: the list is empty, or holds a value twice.
    """
    if not len(values):
        raise InputError(f"{name} is empty: give at least one value")
    if twice := [str(value) for value, times in Counter(values).items() if times > 1]:
        raise InputError(f"{name} holds {', '.join(twice)} more than once: give each value once")
