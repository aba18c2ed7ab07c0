"""One call of `lrsa diagnose`: a model, its texts, and the files of results."""

import logging
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import torch

from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.diagnosis.chosen import choose
from lrsa_lightning.diagnosis.diagnose import check_mode, diagnose
from lrsa_lightning.diagnosis.files import write_files
from lrsa_lightning.diagnosis.findings import Findings
from lrsa_lightning.diagnosis.marks import MarkedText
from lrsa_lightning.diagnosis.texts import TextSource
from lrsa_lightning.npu.accelerator import make_fabric
from lrsa_lightning.pretrained.decoder import check_length

log = logging.getLogger(__name__)
_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_LONGEST = 32768


class Diagnosis:
    """Its help describes the options.

    Attributes:
        texts: of all files.
    """

    def __init__(self, options: Namespace):
        """The options are parsed, with the attention mode instantiated. It reads no weights.

        Raises:
            InputError: an option, the model or a file is wrong.
        """
        self._options = options
        self._source = ModelSource(options.model)
        self._mode = options.attention or self._source.attention
        check_mode(self._mode)
        self._mode.check(self._source.config)
        longest = options.max_tokens or self._source.seq_len or _default_length(self._source.config)
        check_length(self._source.config, longest, "--max_tokens")
        source = TextSource(self._source.tokenizer, options.template or self._source.template, longest, options.extend)
        self.texts: list[MarkedText] = [
            text
            for file in options.data
            for text in choose(source.texts(file), file, source, self._mode, options.num_texts)
        ]

    def measure(self, texts: Iterable[MarkedText]) -> Findings:
        """Reads the weights and runs the model over the texts."""
        options = self._options
        device = torch.device("cpu") if options.device == "cpu" else make_fabric(1).device
        dtype = _PRECISIONS[options.precision or ("float32" if device.type == "cpu" else "bfloat16")]
        model = self._source.load(dtype, device)
        log.info("%r, %s on %s", self._mode, dtype, device)
        return diagnose(model, self._mode, texts, max_queries=options.max_queries, forward=options.forward)

    def write(self, findings: Findings, folder: Path) -> list[Path]:
        """Writes JSON and pictures; returns their paths."""
        about = {"model": str(self._source), "data": self._options.data, "forward": self._options.forward}
        return write_files(findings, folder, self._mode, str(self._source), **about)


def _default_length(config) -> int:
    return min(_LONGEST, getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or _LONGEST)
