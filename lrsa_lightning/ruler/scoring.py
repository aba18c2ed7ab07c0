"""Scores of predictions in RULER's formulas and from RULER's files (scripts/eval/evaluate.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.json_lines import read_lines
from lrsa_lightning.ranges import checked
from lrsa_lightning.ruler.tasks import find_task


@checked
def score_predictions(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The score of a task, 0..100, rounded to two decimals as RULER does.

    Args:
        task: name in `TASKS`.
        predictions: the newly generated text of each sample, without the prompt.
        references: the expected strings of each sample.

    Raises:
        InputError: the task is unknown, there are no predictions, their number is not that of the references, or a
            value is no text.
    """
    metric = find_task(task).metric
    if not len(predictions) or len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions for {len(references)} references")
    pairs = list(zip(predictions, references, strict=True))
    for number, pair in enumerate(pairs):
        _check_pair(*pair, f"{task}, sample {number}")
    return round(100 * sum(metric(*pair) for pair in pairs) / len(pairs), 2)


def _check_pair(prediction: Any, references: Any, where: str) -> None:
    if not isinstance(prediction, str):
        raise InputError(f"{where}: the prediction is {prediction!r}, expected a text")
    is_list = isinstance(references, Sequence) and not isinstance(references, str | bytes)
    if not is_list or not references or not all(isinstance(reference, str) for reference in references):
        raise InputError(f"{where}: the references are {references!r}, expected a list of texts, one at least")


def score_file(path: Path) -> float:
    """The score of a file of predictions in RULER's format: <task>.jsonl with fields pred and outputs.

    Raises:
        InputError: the file has no task's name, does not exist or is empty, or a line is malformed.
    """
    try:
        find_task(path.stem)
    except InputError as error:
        raise InputError(f"predictions file {path} must be named <task>.jsonl: {error}") from error
    predictions, references = [], []
    for number, row in read_lines(path):
        if missing := [key for key in ("pred", "outputs") if key not in row]:
            what = " and ".join(missing)
            raise InputError(f"{path}, line {number}: expected an object with pred and outputs, {what} is missing")
        _check_pair(row["pred"], row["outputs"], f"{path}, line {number}")
        predictions.append(row["pred"])
        references.append(row["outputs"])
    if not predictions:
        raise InputError(f"predictions file {path} is empty: give a line with pred and outputs for each sample")
    return score_predictions(path.stem, predictions, references)
