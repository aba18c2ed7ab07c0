"""RULER's metrics (scripts/eval/synthetic/constants.py, scripts/eval/evaluate.py)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.json_lines import read_lines
from lrsa_lightning.ranges import checked

_CONTROL = re.compile(r"[\x00-\x1f]")


def postprocess(prediction: str) -> str:
    """RULER's clean-up of a prediction: control characters become newlines, outer white space goes."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references found in the prediction, case ignored: a sample's part of string_match_all."""
    prediction = postprocess(prediction).lower()
    return sum(reference.lower() in prediction for reference in references) / len(references)


def match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference is found in the prediction, case ignored: a sample's part of string_match_part."""
    prediction = postprocess(prediction).lower()
    return float(any(reference.lower() in prediction for reference in references))


@checked
def score_predictions(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Score of a task, 0..100, rounded to two decimals as RULER does.

    Args:
        task: name in `TASKS`.
        predictions: newly generated text of each sample, the prompt not included.
        references: the expected strings of each sample.

    Raises:
        InputError: unknown task, no predictions, not one list of references for each, or anything that is no text.
    """
    from lrsa_lightning.ruler.tasks import find_task

    metric = find_task(task).metric
    if not len(predictions) or len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions for {len(references)} references")
    pairs = list(zip(predictions, references, strict=True))
    for number, pair in enumerate(pairs):
        _check_pair(*pair, f"{task}, sample {number}")
    scores = [metric(p, r) for p, r in pairs]
    return round(100 * sum(scores) / len(scores), 2)


def _check_pair(prediction: Any, references: Any, where: str) -> None:
    if not isinstance(prediction, str):
        raise InputError(f"{where}: the prediction is {prediction!r}, expected a text")
    is_list = isinstance(references, Sequence) and not isinstance(references, str | bytes)
    if not is_list or not references or not all(isinstance(reference, str) for reference in references):
        raise InputError(f"{where}: the references are {references!r}, expected a list of texts, one at least")


def score_file(path: Path) -> float:
    """Score of a file of predictions in RULER's format: <task>.jsonl, each line with pred and outputs.

    Raises:
        InputError: the file is not named after a task, does not exist or is empty, or a line is malformed.
    """
    from lrsa_lightning.ruler.tasks import find_task

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
