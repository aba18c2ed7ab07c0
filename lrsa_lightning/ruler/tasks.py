"""RULER's 13 tasks and their metrics.

Source: scripts/synthetic.yaml, scripts/data/synthetic/constants.py, scripts/eval/synthetic/constants.py and evaluate.py
of RULER.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.cwe import CommonWords
from lrsa_lightning.ruler.fwe import FrequentWords
from lrsa_lightning.ruler.niah import Niah
from lrsa_lightning.ruler.qa import QuestionAnswering
from lrsa_lightning.ruler.sources import WHERE_TO_GET, Sources
from lrsa_lightning.ruler.task_generator import TaskGenerator, enumeration, numbered
from lrsa_lightning.ruler.vt import VariableTracking

_CONTROL = re.compile(r"[\x00-\x1f]")


def postprocess(prediction: str) -> str:
    """RULER's clean-up of a prediction: it strips outer white space and makes control characters newlines."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def match_all(prediction: str, references: Sequence[str]) -> float:
    """The fraction of the references in the prediction, case ignored. string_match_all is its mean over samples."""
    prediction = postprocess(prediction).lower()
    return sum(reference.lower() in prediction for reference in references) / len(references)


def match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction holds any reference, case ignored, else 0. string_match_part is its mean over samples."""
    return float(match_all(prediction, references) > 0)


@dataclass(frozen=True)
class Setting:
    """What a task generator needs to know.

    Attributes:
        max_length: tokens of prompt, template, answer prefix and new tokens together.
        budget: the same without the new tokens.
        sources: files of some tasks.
        count_tokens: counts a text's tokens.
    """

    max_length: int
    budget: int
    sources: Sources
    count_tokens: Callable[[str], int]


@dataclass(frozen=True)
class Task:
    """A RULER task.

    Attributes:
        make: the generator of its samples under a setting.
        tokens_to_generate: new tokens of an answer at most; part of the length.
        answer: expected strings -> a correct answer after the answer prefix, in the style of the task's example.
        metric: (prediction, references) -> 0..1.
        source: name in `Sources` of the task's file; None: it needs none.
    """

    make: Callable[[Setting], TaskGenerator]
    tokens_to_generate: int
    answer: Callable[[Sequence[str]], str]
    metric: Callable[[str, Sequence[str]], float] = match_all
    source: str | None = None


def _listed(outputs: Sequence[str]) -> str:
    return " " + enumeration(outputs)


def _niah(haystack: str, **sizes) -> Task:
    def make(setting: Setting) -> Niah:
        return Niah(setting.sources.read("essays") if haystack == "essay" else haystack, **sizes)

    return Task(make, 128, _listed, source="essays" if haystack == "essay" else None)


def _common_words(setting: Setting) -> CommonWords:
    further = setting.sources.read("english_words") if "english_words" in setting.sources.given() else ()
    return CommonWords(setting.max_length, further)


def _qa(source: str) -> Task:
    def make(setting: Setting) -> QuestionAnswering:
        return QuestionAnswering(setting.sources.read(source), setting.count_tokens)

    return Task(make, 32, lambda outputs: " " + outputs[0], match_part, source)


TASKS = {
    "niah_single_1": _niah("noise"),
    "niah_single_2": _niah("essay"),
    "niah_single_3": _niah("essay", values="uuids"),
    "niah_multikey_1": _niah("essay", num_keys=4),
    "niah_multikey_2": _niah("needle"),
    "niah_multikey_3": _niah("needle", keys="uuids", values="uuids"),
    "niah_multivalue": _niah("essay", num_values=4),
    "niah_multiquery": _niah("essay", num_keys=4, num_queries=4),
    "vt": Task(lambda setting: VariableTracking(setting.count_tokens), 30, lambda outputs: " " + " ".join(outputs)),
    "cwe": Task(_common_words, 120, lambda outputs: " " + numbered(outputs)),
    "fwe": Task(lambda setting: FrequentWords(setting.budget), 50, _listed),
    "qa_1": _qa("squad"),
    "qa_2": _qa("hotpotqa"),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: the name is unknown. The error lists the tasks.
    """
    if isinstance(name, str) and name in TASKS:
        return TASKS[name]
    near = get_close_matches(str(name), TASKS, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"unknown RULER task {name!r}, expected one of {', '.join(TASKS)}{meant}")


def check_tasks(tasks: Sequence[str], name: str) -> None:
    """Checks that the list of the option ``name`` names tasks, one at least and each once.

    Raises:
        InputError: the list is empty, a task is unknown, or a task is in it twice.
    """
    for task in tasks:
        try:
            find_task(task)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    check_choice(tasks, name)


def light_tasks(sources: Sources) -> list[str]:
    """A few tasks of each group that the given files suffice for: the default in training."""
    has = sources.given()
    retrieval = "niah_single_2" if "essays" in has else "niah_single_1"
    wanted = [retrieval, "niah_multikey_2", "niah_multikey_3", "niah_multiquery", "vt", "fwe", "qa_1"]
    return [task for task in wanted if TASKS[task].source in (None, *has)]


def possible_tasks(tasks: Sequence[str], sources: Sources, skip_missing: bool) -> list[str]:
    """The tasks whose files are given.

    Raises:
        InputError: a file has another format, or a file is missing and such tasks are not to be left out.
    """
    possible = []
    for task in tasks:
        source = find_task(task).source
        if source is None or source in sources.given():
            for name in source_files(task, sources):
                sources.read(name)  # checks its format before samples are made from it
            possible.append(task)
        elif not skip_missing:
            raise InputError(
                f"RULER {task} needs the file {source}: {WHERE_TO_GET[source]}; or leave the task out, or with "
                "skip_missing all such"
            )
    return possible


def source_files(task: str, sources: Sources) -> list[str]:
    """Names of the given files that a task's samples depend on."""
    wanted = {find_task(task).source, "english_words" if task == "cwe" else None}
    return [name for name in sources.given() if name in wanted]
