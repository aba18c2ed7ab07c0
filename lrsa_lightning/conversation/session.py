"""A model, a document and questions at a terminal; everything is checked before the weights are read."""

import logging
import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from transformers import StoppingCriteria, StopStringCriteria

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.conversation.conversation import Answer, Conversation
from lrsa_lightning.conversation.display import AnswerStream, PrefillProgress
from lrsa_lightning.conversation.sampling import Sampling
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.conversation.turns import Turns
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.yaml_text import read_text
from lrsa_lightning.npu.accelerator import make_fabric
from lrsa_lightning.pretrained.decoder import check_length

log = logging.getLogger(__name__)
# Tokens in a forward pass of the prefill. On a CPU one of 4096 would take a minute, without a sign of progress.
_PIECE = {"cpu": 1024}
_LARGE_PIECE = 4096
_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Session:
    """One call of `lrsa generate` or `lrsa chat`; their help describes the options."""

    def __init__(self, options: Namespace, sampling: Sampling):
        """
        Raises:
            InputError: an option, the document, the model's configuration or its tokenizer is wrong.
        """
        document = "" if options.document is None else read_document(Path(options.document))
        self._options, self._sampling = options, sampling
        self._source = ModelSource(options.model)
        self._config = self._source.config
        self._turns = Turns(options.template or self._source.template, self._source.tokenizer, document)
        self._mode: AttentionMode = options.attention or self._source.attention
        self._unread = self._turns.document_ids
        self._stop = CtrlC()
        self._planned: int | None = None
        self._fits(len(self._unread) + 1)

    def plan(self, question: str) -> None:
        """There will be one question: the cache gets the size that its answer needs.

        Raises:
            InputError: the question is empty, or document, question and answer are longer than the model's positions.
        """
        self._planned = self._fits(len(self._unread) + len(self._turns.question(question)))
        num_layers = self._config.get_text_config(decoder=True).num_hidden_layers
        if remark := self._mode.remark(self._planned, num_layers):
            log.warning(remark)

    def read(self) -> Answer | None:
        """Reads the weights, then prefills the document while its questions are not known; None without a document."""
        conversation = self._conversation
        if self._options.document is None or not self._unread:
            return None
        ids, self._unread = self._unread, []
        with PrefillProgress() as progress:
            return conversation.read(ids, progress)

    def ask(self, question: str) -> Answer:
        """Prints the answer to a question as it comes; Ctrl-C ends it early.

        Raises:
            InputError: the question is empty, or the conversation gets longer than the model's positions.
        """
        ids = self._unread + self._turns.question(question)
        self._fits(len(self._conversation.ids) + len(ids))
        self._unread = []
        with self._stop.on_interrupt(), PrefillProgress() as progress:
            answer = self._conversation.answer(ids, AnswerStream(self._source.tokenizer), progress)
        self._turns.answered()
        return answer

    def _fits(self, num_prompt: int) -> int:
        """The longest length after an answer, if the model has positions for it."""
        longest = num_prompt + self._sampling.max_new_tokens
        check_length(self._config, longest, f"{num_prompt} tokens + max_new_tokens =")
        self._mode.for_length(longest).check(self._config)
        return longest

    @cached_property
    def _conversation(self) -> Conversation:
        options = self._options
        device = torch.device("cpu") if options.device == "cpu" else make_fabric(1).device
        dtype = _PRECISIONS[options.precision or ("float32" if device.type == "cpu" else "bfloat16")]
        model = self._source.load(dtype, device)
        log.info("%r, %s on %s", self._mode, dtype, device)
        criteria = [self._stop]
        if self._sampling.stop_strings:
            criteria.append(StopStringCriteria(self._source.tokenizer, self._sampling.stop_strings))
        return Conversation(
            model,
            self._mode,
            self._sampling,
            self._turns.ends,
            criteria,
            options.seed,
            options.prefill_chunk_size or _PIECE.get(device.type, _LARGE_PIECE),
            self._planned,
        )


def read_document(path: Path) -> str:
    """The text of a document.

    Raises:
        InputError: the file is missing, unreadable, empty, or no UTF-8 text.
    """
    text = read_text(path)
    if "\0" in text:
        raise InputError(f"--document {path} is no text, it holds NUL bytes: give a text file")
    if not text.strip():
        raise InputError(f"--document {path} is empty: give a text file, or leave the option out")
    return text


class CtrlC(StoppingCriteria):
    """Ends an answer between two tokens: an exception in a forward pass would leave half of a token in the cache."""

    def __init__(self):
        self._pressed = False

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Within the block the first Ctrl-C ends the answer; the next one interrupts as usual."""
        earlier = signal.getsignal(signal.SIGINT)

        def press(*_) -> None:
            self._pressed = True
            signal.signal(signal.SIGINT, earlier)

        self._pressed = False
        signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, earlier)

    def __call__(self, input_ids, scores, **_) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._pressed, device=input_ids.device)
