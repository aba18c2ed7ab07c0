"""The registry of RULER's 13 tasks (scripts/synthetic.yaml, scripts/data/synthetic/constants.py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.cwe import CommonWords
from lrsa_lightning.ruler.fwe import FrequentWords
from lrsa_lightning.ruler.niah import Niah
from lrsa_lightning.ruler.qa import OfficialQuestionAnswering, QuestionAnswering
from lrsa_lightning.ruler.scoring import match_all, match_part
from lrsa_lightning.ruler.sources import Sources, where_to_get
from lrsa_lightning.ruler.task_generator import TaskGenerator
from lrsa_lightning.ruler.vt import VariableTracking


@dataclass(frozen=True)
class Setting:
    """What a task's samples are made for.

    Attributes:
        max_length: tokens of prompt, template, answer prefix and new tokens together.
        budget: the same without the new tokens.
        sources: files some tasks need.
        count_tokens: of a text.
        official_compat: whether sizes and orders are the official code's.
    """

    max_length: int
    budget: int
    sources: Sources
    count_tokens: Callable[[str], int]
    official_compat: bool


@dataclass(frozen=True)
class Task:
    """A RULER task.

    Attributes:
        make: the kind of its samples under a setting.
        tokens_to_generate: new tokens a model may take; part of the length.
        metric: (prediction, references) -> 0..1.
        source: name in `Sources` of the file it is made from; None: it needs none.
        single_answer: whether one string is asked for.
    """

    make: Callable[[Setting], TaskGenerator]
    tokens_to_generate: int
    metric: Callable[[str, Sequence[str]], float] = match_all
    source: str | None = None
    single_answer: bool = False


def _niah(haystack: str, **sizes) -> Task:
    def make(setting: Setting) -> Niah:
        text = setting.sources.read("essays") if haystack == "essay" else haystack
        return Niah(text, setting.max_length, **sizes)

    single = sizes.get("num_values", 1) * sizes.get("num_queries", 1) == 1
    return Task(make, 128, source="essays" if haystack == "essay" else None, single_answer=single)


def _common_words(setting: Setting) -> CommonWords:
    further = setting.sources.read("english_words") if "english_words" in setting.sources.given() else ()
    return CommonWords(setting.max_length, further)


def _questions(source: str, setting: Setting) -> TaskGenerator:
    data = setting.sources.read(source)
    if setting.official_compat:
        return OfficialQuestionAnswering(data)
    return QuestionAnswering(data, setting.count_tokens)


def _qa(source: str) -> Task:
    return Task(partial(_questions, source), 32, match_part, source, single_answer=True)


TASKS = {
    "niah_single_1": _niah("noise"),
    "niah_single_2": _niah("essay"),
    "niah_single_3": _niah("essay", values="uuids"),
    "niah_multikey_1": _niah("essay", num_keys=4),
    "niah_multikey_2": _niah("needle"),
    "niah_multikey_3": _niah("needle", keys="uuids", values="uuids"),
    "niah_multivalue": _niah("essay", num_values=4),
    "niah_multiquery": _niah("essay", num_keys=4, num_queries=4),
    "vt": Task(lambda setting: VariableTracking(setting.max_length, setting.count_tokens), 30),
    "cwe": Task(_common_words, 120),
    "fwe": Task(lambda setting: FrequentWords(setting.budget), 50),
    "qa_1": _qa("squad"),
    "qa_2": _qa("hotpotqa"),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none; lists those there are.
    """
    if isinstance(name, str) and name in TASKS:
        return TASKS[name]
    near = get_close_matches(str(name), TASKS, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"unknown RULER task {name!r}, expected one of {', '.join(TASKS)}{meant}")


def check_tasks(tasks: Sequence[str], name: str) -> None:
    """Whether tasks are a choice of those there are.

    Args:
        tasks: by name.
        name: what the user calls them, for the error.

    Raises:
        InputError: none, an unknown one, or one twice.
    """
    for task in tasks:
        try:
            find_task(task)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    check_choice(tasks, name)


def light_tasks(sources: Sources) -> list[str]:
    """A few tasks of each kind, of those that can be made from the files there are: the mid-training default."""
    has = sources.given()
    retrieval = "niah_single_2" if "essays" in has else "niah_single_1"
    wanted = [retrieval, "niah_multikey_2", "niah_multikey_3", "niah_multiquery", "vt", "fwe", "qa_1"]
    return [task for task in wanted if TASKS[task].source in (None, *has)]


def possible_tasks(tasks: Sequence[str], sources: Sources, skip_missing: bool) -> list[str]:
    """Those of the tasks whose files are there.

    Raises:
        InputError: a file is missing, unless such tasks are to be left out, or it does not hold what it should.
    """
    possible = []
    for task in tasks:
        source = find_task(task).source
        if source is None or source in sources.given():
            sources.check(source_files(task, sources))
            possible.append(task)
        elif not skip_missing:
            raise InputError(
                f"RULER {task} needs the file {source}: {where_to_get(source)}; or leave the task out, or with "
                "skip_missing all such"
            )
    return possible


def source_files(task: str, sources: Sources) -> list[str]:
    """Names of the given files that a task's samples are made from."""
    wanted = {find_task(task).source, "english_words" if task == "cwe" else None}
    return [name for name in sources.given() if name in wanted]
