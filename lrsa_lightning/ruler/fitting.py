"""The search for the largest prompt within a token budget."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Prompt = TypeVar("Prompt")


class DoesNotFit(ValueError):
    """Even the smallest prompt is longer than the budget."""


@dataclass(frozen=True)
class Fit(Generic[Prompt]):
    """The prompt found.

    Attributes:
        units: its size.
        prompt: the prompt.
        tokens: its length.
    """

    units: int
    prompt: Prompt
    tokens: int


def largest_fit(
    build: Callable[[int], Prompt],
    count_tokens: Callable[[Prompt], int],
    budget: int,
    guess: int,
    least: int = 0,
    most: int | None = None,
    enough: float = 1.0,
) -> Fit[Prompt]:
    """The largest number of units whose prompt takes at most ``budget`` tokens, or the first that is large enough.

    It jumps by the average size of a unit and halves the bracket where a jump leaves it. So it tokenises a long
    prompt a handful of times.

    Args:
        build: number of units -> the prompt; longer with more units, or nearly so.
        count_tokens: prompt -> tokens.
        budget: tokens.
        guess: units to try first.
        least: the least units of a prompt.
        most: the most units of a prompt; None: no limit.
        enough: fraction of the budget that ends the search.

    Raises:
        DoesNotFit: the prompt of the fewest units is too long.
    """
    best = Fit(least, prompt := build(least), count_tokens(prompt))
    base = best.tokens
    if base > budget:
        raise DoesNotFit(f"needs {base} tokens without any haystack, the budget is {budget}")
    too_many = None if most is None else most + 1
    units = max(least + 1, guess)
    while best.tokens < enough * budget and (too_many is None or too_many - best.units > 1):
        if too_many is not None and units >= too_many:
            units = max(best.units + 1, too_many - 1 - (too_many - 1 - best.units) // 2)
        found = Fit(units, prompt := build(units), count_tokens(prompt))
        if found.tokens <= budget:
            best = found
        else:
            too_many = units
        per_unit = max(found.tokens - base, 1) / (units - least)
        units = max(best.units + 1, least + int((budget * (1 + enough) / 2 - base) / per_unit))
    return best
