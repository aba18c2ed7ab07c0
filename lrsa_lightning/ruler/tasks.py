"""The registry of tasks, and their samples fitted to a length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lrsa_lightning.data.template import Template, TemplateName, make_template
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.fitting import largest_fit
from lrsa_lightning.ruler.niah import Draw, Niah
from lrsa_lightning.ruler.scoring import match_all


@dataclass(frozen=True)
class Task:
    """A RULER task.

    Attributes:
        kind: draws its samples.
        tokens_to_generate: new tokens a model may take; part of the length.
        metric: (prediction, references) -> 0..1.
    """

    kind: Niah
    tokens_to_generate: int
    metric: Callable[[str, Sequence[str]], float]


TASKS = {
    "niah_single_1": Task(Niah("noise"), 128, match_all),
    "niah_multikey_2": Task(Niah("needle"), 128, match_all),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none; lists those there are.
    """
    if name not in TASKS:
        raise InputError(f"unknown RULER task {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def make_samples(
    task: str, tokenizer, max_length: int, num_samples: int, seed: int = 42, template: TemplateName = "base"
) -> list[dict[str, Any]]:
    """Samples of one task at one length.

    Sample i depends on (seed, task, max_length, i) and the tokenizer alone, so subsets are stable.

    Args:
        task: name in `TASKS`.
        tokenizer: counts the tokens.
        max_length: tokens of prompt, template, answer prefix and new tokens together.
        num_samples: how many.
        seed: of the draws.
        template: base or chatml; the answer prefix starts the assistant's turn.

    Returns:
        rows with id, index, task, input, answer_prefix (to be sent behind input), outputs, depths and
        length (tokens of the prompt plus tokens_to_generate).

    Raises:
        InputError: unknown task, or a sample that cannot fit max_length.
    """
    spec = find_task(task)
    frame = make_template(template, tokenizer)
    units = int((max_length - spec.tokens_to_generate) / spec.kind.tokens_per_unit)
    rows = []
    for index in range(num_samples):
        draw = spec.kind.draw(Random(f"{seed}:{task}:{max_length}:{index}"))
        try:
            # Samples of one length need much the same haystack: each search starts from the last one's result.
            units, text, length = _fit(draw, frame, tokenizer, max_length - spec.tokens_to_generate, units)
        except ValueError as error:
            raise InputError(f"RULER {task} at length {max_length}: {error} (length less new tokens)") from None
        rows.append(
            {
                "id": f"{task}-{max_length}-{seed}-{index}",
                "index": index,
                "task": task,
                "input": text,
                "answer_prefix": draw.answer_prefix,
                "outputs": draw.outputs,
                "depths": draw.depths,
                "length": length + spec.tokens_to_generate,
            }
        )
    return rows


def _fit(draw: Draw, frame: Template, tokenizer, budget: int, guess: int) -> tuple[int, str, int]:
    """The largest haystack that fits: its units, the text in front of the answer prefix, tokens of both."""

    def text(units: int) -> str:
        return frame.before + draw.build(units) + frame.after

    def count_tokens(prompt: str) -> int:
        return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])

    units = largest_fit(lambda units: text(units) + draw.answer_prefix, count_tokens, budget, guess)
    return units, text(units), count_tokens(text(units) + draw.answer_prefix)
