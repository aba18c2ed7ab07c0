"""Predicts memory and time of a run before anything is loaded, for `lrsa plan` and at the start of `lrsa fit`."""

from lrsa_lightning.plan.options import Option, fitting_options
from lrsa_lightning.plan.prediction import Prediction, predict
from lrsa_lightning.plan.report import as_json, print_report, verdict
from lrsa_lightning.plan.run import Run

__all__ = ["Option", "Prediction", "Run", "as_json", "fitting_options", "predict", "print_report", "verdict"]
