"""Texts of files: RULER's samples with their needles, and rows of any format that training reads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.encoder import SampleEncoder
from lrsa_lightning.data.files import rows_of
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.data.tokenization import LongTokenizer
from lrsa_lightning.diagnosis.marks import (
    ANSWER,
    DOCUMENT,
    QUESTION,
    MarkedText,
    Punctuation,
    classes_of_spans,
    needle_spans,
)
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.samples import check_row

_RULER_FIELDS = {"input": str, "outputs": list}


@dataclass(frozen=True)
class TextSource:
    """How rows of files become texts.

    Attributes:
        tokenizer: the model's.
        template: base or chatml.
        max_tokens: longer texts are left out.
        extend: whether texts of other formats than RULER's are filled up to max_tokens with sections of others.
    """

    tokenizer: Any
    template: TemplateName
    max_tokens: int
    extend: bool = False

    def texts(self, file: str) -> Iterator[MarkedText | None]:
        """The texts of a file, in its order; None for one that is longer than max_tokens.

        Raises:
            InputError: the file cannot be read, its format is unknown, or a row is malformed.
        """
        _, _, first = next(rows_of(file))
        if isinstance(first, Mapping) and _RULER_FIELDS.keys() <= first.keys():
            return (self._of_ruler(where, row) for where, _, row in rows_of(file))
        return self.of_samples([*read_samples(file)])

    def of_samples(self, samples: list[Sample]) -> Iterator[MarkedText | None]:
        """The texts of samples, as training makes them."""
        extender = Extender(samples, "Document", 42) if self.extend else None
        encode = SampleEncoder(self.tokenizer, self._template, self.max_tokens - 1, extender)
        for sample in samples:
            if (row := encode(sample)) is None:
                yield None
                continue
            question = len(self._tokenize(sample.question + self._template.after))
            num_question = min(question, len(row.ids) - row.num_labels)
            parts = (DOCUMENT, QUESTION, ANSWER)
            sizes = (len(row.ids) - row.num_labels - num_question, num_question, row.num_labels)
            classes = [part for part, size in zip(parts, sizes, strict=True) for _ in range(size)]
            yield MarkedText(sample.id, row.ids, self._punctuation.mark(row.ids, classes), row.num_labels)

    def _of_ruler(self, where: str, row: Any) -> MarkedText | None:
        if not isinstance(row, Mapping):
            raise InputError(f"{where}: expected an object, as in files of `lrsa ruler`")
        check_row(row, _RULER_FIELDS, where)
        turn = row["input"]
        text = turn + row.get("answer_prefix", "")
        # RULER's question is the last line of the user's turn.
        user = turn.removesuffix(self._template.after) if self._template.after else turn
        question_start = user.rstrip().rfind("\n") + 1
        prompt = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        answer = self._tokenize(row.get("answer") or f" {', '.join(row['outputs'])}")
        ids = [*prompt["input_ids"], *answer]
        if len(ids) > self.max_tokens:
            return None
        needles = needle_spans(text[:question_start], row["outputs"])
        classes = classes_of_spans(prompt["offset_mapping"], question_start, needles) + [ANSWER] * len(answer)
        return MarkedText(str(row.get("id", where)), ids, self._punctuation.mark(ids, classes), len(answer))

    @cached_property
    def _template(self):
        return make_template(self.template, self.tokenizer)

    @cached_property
    def _tokenize(self) -> LongTokenizer:
        return LongTokenizer(self.tokenizer)

    @cached_property
    def _punctuation(self) -> Punctuation:
        return Punctuation(self.tokenizer)
