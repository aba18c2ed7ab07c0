"""The token ids of a conversation's turns, as training makes those of a sample."""

from lrsa_lightning.data.template import TemplateName, answer_ends, between_turns, make_template
from lrsa_lightning.data.tokenization import LongTokenizer
from lrsa_lightning.errors import InputError


class Turns:
    """A document, then questions. Their ids are those of the text in one piece, read as soon as each part is known.

    Attributes:
        document_ids: what is known before the first question: the start of the template, and the document up to its
            last place that no token spans.
        ends: the id that ends an answer under the template; empty where one token does not.
    """

    def __init__(self, template: TemplateName, tokenizer, document: str = ""):
        """
        Args:
            template: of the user's turns.
            tokenizer: a transformers tokenizer.
            document: the text that comes before the first question; empty for none.

        Raises:
            InputError: the template needs what the tokenizer lacks.
        """
        self._name, self._tokenizer = template, tokenizer
        self._template = make_template(template, tokenizer)
        self._tokenize = LongTokenizer(tokenizer)
        self.ends = answer_ends(template, tokenizer)
        head, self._before = self._tokenize.split(f"{document.rstrip()}\n\n" if document else "")
        before = self._template.before
        self.document_ids = (self._tokenize(before) if before else []) + (self._tokenize(head) if head else [])

    def question(self, text: str) -> list[int]:
        """The ids of a question, from what comes before it up to the place where its answer begins.

        Raises:
            InputError: the question is empty, or the tokenizer has no tokens for it.
        """
        if not text.strip():
            raise InputError("the question is empty: give a text")
        ids = self._tokenize(self._before + text.strip() + self._template.after)
        if not ids:
            raise InputError("the tokenizer has no tokens for the question: use a model that knows its language")
        return ids

    def answered(self) -> None:
        """The next question follows an answer."""
        self._before = between_turns(self._name, self._tokenizer)
