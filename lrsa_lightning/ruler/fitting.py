"""How much haystack fits a token budget: bounded, where RULER's own loop can spin for ever."""

from collections.abc import Callable


def largest_fit(build: Callable[[int], str], count_tokens: Callable[[str], int], budget: int, guess: int) -> int:
    """Largest number of haystack units whose prompt takes at most ``budget`` tokens.

    Jumps by the average size of a unit and halves the bracket when a jump would leave it, so that a long
    prompt is tokenised a handful of times.

    Args:
        build: number of units, at least 0 -> the whole prompt; longer with more units.
        count_tokens: prompt -> tokens.
        budget: tokens.
        guess: units to try first.

    Raises:
        ValueError: not even a prompt without haystack fits.
    """
    base = count_tokens(build(0))
    if base > budget:
        raise ValueError(f"needs {base} tokens without any haystack, the budget is {budget}")
    fits, too_many = 0, None
    units = max(1, guess)
    while too_many is None or too_many - fits > 1:
        tokens = count_tokens(build(units))
        if tokens <= budget:
            fits = units
        else:
            too_many = units
        per_unit = max(tokens - base, 1) / units
        units = max(fits + 1, int((budget - base) / per_unit))
        if too_many is not None and units >= too_many:
            units = max(fits + 1, too_many - 1 - (too_many - 1 - fits) // 2)
    return fits
