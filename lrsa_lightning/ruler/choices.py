"""Lists a user gives: not empty, nothing twice."""

from collections import Counter
from collections.abc import Sequence

from lrsa_lightning.errors import InputError


def check_choice(values: Sequence, name: str) -> None:
    """Whether a list says what to evaluate.

    Raises:
        InputError: it is empty, or holds a value twice.
    """
    if not len(values):
        raise InputError(f"{name} is empty: give at least one value")
    check_distinct(values, name)


def check_distinct(values: Sequence, name: str) -> None:
    """Whether no value is there twice.

    Raises:
        InputError: one is.
    """
    twice = [str(value) for value, times in Counter(values).items() if times > 1]
    if twice:
        raise InputError(f"{name} holds {', '.join(twice)} more than once: give each value once")
