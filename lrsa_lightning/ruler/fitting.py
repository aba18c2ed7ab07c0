"""How many units fit a token budget: our search, and the official code's, bounded where that can spin for ever."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from lrsa_lightning.ruler.task_generator import OfficialSteps, TooFewUnits

Prompt = TypeVar("Prompt")
# The official code draws anew until a draw fits; a draw of the least units differs from the next by a few tokens.
_REDRAWS = 20


class DoesNotFit(ValueError):
    """Not even the smallest prompt keeps the budget."""


@dataclass(frozen=True)
class Fit(Generic[Prompt]):
    """The prompt found.

    Attributes:
        units: its size.
        prompt: what was built.
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
    """The largest number of units whose prompt takes at most ``budget`` tokens, or the first found that will do.

    Jumps by the average size of a unit and halves the bracket when a jump would leave it, so that a long
    prompt is tokenised a handful of times.

    Args:
        build: number of units -> the prompt; longer with more units, or nearly so.
        count_tokens: prompt -> tokens.
        budget: tokens.
        guess: units to try first.
        least: units below which there is no prompt.
        most: units above which there is none; None: no limit.
        enough: share of the budget that ends the search.

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


def official_units(
    tokens_of: Callable[[int], int], steps: OfficialSteps, budget: int, max_length: int, most: int | None = None
) -> int:
    """Units the official code begins each sample with; ``tokens_of`` draws a new prompt each time.

    Args:
        tokens_of: number of units -> tokens of a prompt.
        steps: of the task.
        budget: tokens of a prompt.
        max_length: tokens of a prompt and of its answer.
        most: units above which there is no prompt; None: no limit.
    """
    if steps.most is None:
        units = steps.probe
        while tokens_of(units) < budget:
            units += steps.step
        return units - steps.step
    per_unit = (tokens_of(steps.probe) - steps.beside) / steps.probe
    low, high = steps.step, max(int(max_length / per_unit * steps.most), 2 * steps.step)
    high = high if most is None else min(high, most)
    found = steps.step
    while low <= high:
        middle = (low + high) // 2
        try:
            fits = tokens_of(middle) <= budget
        except TooFewUnits:
            fits = True
        if fits:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def official_fit(
    build: Callable[[int], Prompt], count_tokens: Callable[[Prompt], int], budget: int, units: int, step: int
) -> Fit[Prompt]:
    """Draws anew with a step fewer units until a prompt fits.

    Raises:
        DoesNotFit: none does; the official code would go on for ever.
    """
    redraws = 0
    while redraws <= _REDRAWS:
        try:
            found = Fit(units, prompt := build(units), count_tokens(prompt))
            if found.tokens <= budget:
                return found
        except TooFewUnits:
            pass
        if units > step:
            units -= step
        else:
            redraws += 1
    raise DoesNotFit(f"does not fit {budget} tokens with {units} units, the official code's least")
