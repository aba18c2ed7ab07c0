"""RULER's metrics (scripts/eval/synthetic/constants.py, scripts/eval/evaluate.py)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lrsa_lightning.errors import InputError

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


def score_predictions(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Score of a task, 0..100, rounded to two decimals as RULER does.

    Args:
        task: name in `TASKS`.
        predictions: newly generated text of each sample, the prompt not included.
        references: the expected strings of each sample.

    Raises:
        ValueError: unknown task, no predictions, or not one list of references for each.
    """
    from lrsa_lightning.ruler.tasks import find_task

    metric = find_task(task).metric
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    scores = [metric(p, r) for p, r in zip(predictions, references, strict=True)]
    return round(100 * sum(scores) / len(scores), 2)


def score_file(path: Path) -> float:
    """Score of a file of predictions in RULER's format: <task>.jsonl, each line with pred and outputs.

    Raises:
        InputError: the file is not named after a task, does not exist, or a line is malformed.
    """
    predictions, references = [], []
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # splitlines would also part at U+2028
    except OSError as error:
        raise InputError(f"predictions file {path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            predictions.append(row["pred"])
            references.append(row["outputs"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: expected an object with pred and outputs ({error!r})") from error
    return score_predictions(path.stem, predictions, references)
