"""Variable tracking (scripts/data/synthetic/variable_tracking.py, constants.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random

from lrsa_lightning.ruler.fitting import Fit, largest_fit
from lrsa_lightning.ruler.niah import NOISE
from lrsa_lightning.ruler.task_generator import Draws, OfficialSteps, Text
from lrsa_lightning.ruler.words import variable_names

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
class VariableTracking:
    """One chain of assignments among lines of noise, behind a worked example within the same turn.

    Attributes:
        max_length: tokens of a sample.
        count_tokens: of a text; sizes the example.
    """

    max_length: int
    count_tokens: Callable[[str], int]
    min_units = _NUM_VARIABLES
    max_units = None

    def items(self) -> None:
        return None

    def official_steps(self) -> OfficialSteps:
        step = 5 if self.max_length < 4096 else 10
        return OfficialSteps(step, step, beside=self._example.tokens)

    def generate(self, draws: Draws, units: int) -> Text:
        """Units are lines of noise."""
        values = draws.rng.sample(range(10000, 99999), 2)
        example = _problem(draws.rng, self._example.units, 3, values[0])
        own = _problem(draws.rng, units, 5, values[1])
        example_text = example.user + example.answer_prefix + example.answer + "\n\n"
        return Text(example_text + own.user, own.answer_prefix, own.outputs, own.answer, own.depths)

    @cached_property
    def _example(self) -> Fit[str]:
        """Sizes the example, once for all samples: noise up to 500 tokens."""

        def build(num_lines: int) -> str:
            example = _problem(Random(0), num_lines, 3, 12345)
            return example.user + example.answer_prefix

        # A tokenizer of single letters needs more for the least there can be.
        budget = max(_EXAMPLE_TOKENS, self.count_tokens(build(_NUM_VARIABLES)))
        return largest_fit(build, self.count_tokens, budget, guess=15, least=_NUM_VARIABLES)


def _problem(rng: Random, num_lines: int, name_length: int, value: int) -> Text:
    names = variable_names(rng, _NUM_VARIABLES, name_length)
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {earlier} " for earlier, name in pairwise(names)]
    lines = [NOISE] * num_lines
    places = sorted(rng.sample(range(num_lines), len(chain)))
    for already, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + already, assignment)
    return Text(
        user=_TEMPLATE.format(context="\n".join(lines), query=value),
        answer_prefix=_ANSWER_PREFIX.format(num_v=_NUM_VARIABLES, query=value),
        outputs=names,
        answer=" " + " ".join(names),
        depths=[place / num_lines for place in places],
    )
