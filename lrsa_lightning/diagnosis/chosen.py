"""Which texts of a file are measured: the first ones that fit and that are long enough."""

import logging
from collections.abc import Iterable

from lrsa_lightning.attention import LRSA
from lrsa_lightning.diagnosis.marks import MarkedText
from lrsa_lightning.diagnosis.texts import TextSource
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)


def choose(
    texts: Iterable[MarkedText | None], name: str, source: TextSource, mode: LRSA, most: int
) -> list[MarkedText]:
    """The first texts that are long enough for the rule to drop something.

    Args:
        texts: of the source; None for one that is too long.
        name: of their file.
        source: how rows became texts.
        mode: whose rule is applied.
        most: how many.

    Raises:
        InputError: the file cannot be read, or no text fits.
    """
    rule = mode.rule()
    least = rule.sink_size + 2 * rule.lag_size + 1
    chosen, too_long, too_short = [], 0, 0
    for text in texts:
        if text is None:
            too_long += 1
        elif len(text.ids) < least:
            too_short += 1
        elif len(chosen) < most:
            chosen.append(text)
        if len(chosen) == most:
            break
    left_out = f"{too_long} texts are longer than {source.max_tokens} tokens, {too_short} shorter than {least}"
    if not chosen:
        raise InputError(
            f"{name}: {left_out}, from which on the rule drops tokens (sink_size + 2 lag_size + 1), and none is left: "
            "raise --max_tokens, take a smaller lag_size, or give --extend true"
        )
    if too_long or too_short:
        log.info("%s: %s; %d are measured", name, left_out, len(chosen))
    return chosen
