"""What a rule keeps of texts, and how much of full attention the kept tokens hold."""

from lrsa_lightning.diagnosis.diagnose import diagnose
from lrsa_lightning.diagnosis.findings import Findings
from lrsa_lightning.diagnosis.marks import CLASSES, MarkedText
from lrsa_lightning.diagnosis.tally import Bins
from lrsa_lightning.diagnosis.texts import TextSource

__all__ = ["CLASSES", "Bins", "Findings", "MarkedText", "TextSource", "diagnose"]
