"""RULER, the long-context benchmark, generated and scored in our own code (NVIDIA/RULER at c3f5e3b)."""

from lrsa_lightning.ruler.samples import make_samples
from lrsa_lightning.ruler.scoring import score_predictions
from lrsa_lightning.ruler.tasks import TASKS

__all__ = ["TASKS", "make_samples", "score_predictions"]
