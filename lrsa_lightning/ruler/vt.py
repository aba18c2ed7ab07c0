"""Variable tracking (scripts/data/synthetic/variable_tracking.py, constants.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from lrsa_lightning.haystack import NOISE
from lrsa_lightning.ruler.fitting import largest_fit
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text, coded_words

_TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
_ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assigned the "
    "value {query}, they are: "
)
_NUM_VARIABLES = 5
_EXAMPLE_TOKENS = 500


@dataclass(frozen=True)
class VariableTracking(TaskGenerator):
    """One chain of assignments among lines of noise, after a worked example in the same turn.

    Attributes:
        count_tokens: counts a text's tokens, for the size of the example.
    """

    count_tokens: Callable[[str], int]
    min_units = _NUM_VARIABLES

    def generate(self, draws: Draws, units: int) -> Text:
        """Units are lines of noise."""
        values = draws.rng.sample(range(10000, 99999), 2)
        example = _problem(draws.rng, self._example_lines, 3, values[0])
        own = _problem(draws.rng, units, 5, values[1])
        example_text = f"{example.user}{example.answer_prefix} {' '.join(example.outputs)}\n\n"
        return Text(example_text + own.user, own.answer_prefix, own.outputs, own.depths)

    @cached_property
    def _example_lines(self) -> int:
        """Lines of noise in the example of every sample: up to 500 tokens."""

        def build(num_lines: int) -> str:
            example = _problem(Random(0), num_lines, 3, 12345)
            return example.user + example.answer_prefix

        # With a tokenizer of single letters the shortest example takes more.
        budget = max(_EXAMPLE_TOKENS, self.count_tokens(build(_NUM_VARIABLES)))
        return largest_fit(build, self.count_tokens, budget, guess=15, least=_NUM_VARIABLES).units


def _problem(rng: Random, num_lines: int, name_length: int, value: int) -> Text:
    drawn = coded_words(rng, _NUM_VARIABLES + 1, name_length, ascii_uppercase)
    names = [name for name in drawn if name != "VAR"][:_NUM_VARIABLES]
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {earlier} " for earlier, name in pairwise(names)]
    lines = [NOISE] * num_lines
    places = sorted(rng.sample(range(num_lines), len(chain)))
    for inserted, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + inserted, assignment)
    return Text(
        user=_TEMPLATE.format(context="\n".join(lines), query=value),
        answer_prefix=_ANSWER_PREFIX.format(num_v=_NUM_VARIABLES, query=value),
        outputs=names,
        depths=[place / num_lines for place in places],
    )
