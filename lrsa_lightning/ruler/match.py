"""RULER's string matching, from which its metrics are made (scripts/eval/synthetic/constants.py, evaluate.py)."""

import re
from collections.abc import Sequence

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
    prediction = postprocess(prediction).lower()
    return float(any(reference.lower() in prediction for reference in references))
