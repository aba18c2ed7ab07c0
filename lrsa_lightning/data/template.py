"""The text that a model reads for a user's turn, in training and in RULER, and between two turns."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, TypeAlias

from lrsa_lightning.data.chat_template import USER, ChatTemplate, applying, around
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)
TemplateName: TypeAlias = Literal["base", "chatml"]
# What data.template may be: auto decides by the rows and the tokenizer.
TemplateChoice: TypeAlias = Literal["auto", "base", "chatml"]
_ASSISTANT, _NEXT = "\x02assistant\x03", "\x02next\x03"


@dataclass(frozen=True)
class Template:
    """Texts around a user's turn and after the answer.

    Attributes:
        before: text before the user's turn.
        after: text between it and the answer.
        answer_start: text that begins the answer.
        answer_end: text that ends the answer; its tokens are labels too.
        chat: renders the turns of a chat in their roles; None where they are text of the user's turn.
    """

    before: str
    after: str
    answer_start: str
    answer_end: str
    chat: ChatTemplate | None = field(default=None, compare=False, repr=False)

    def of(self, sample: Sample) -> "Template":
        """The template of a sample: this one."""
        return self


class TemplateOfEach:
    """The template of each sample: that of its file if it has one, else that of all."""

    def __init__(self, choice: TemplateChoice, tokenizer):
        """
        Args:
            choice: of the samples whose file has none of its own.
            tokenizer: a transformers tokenizer.
        """
        self._choice, self._tokenizer = choice, tokenizer
        self._make = cache(lambda name: make_template(name, tokenizer))

    def of(self, sample: Sample) -> Template:
        """Raises an InputError if the tokenizer lacks what the template needs."""
        return self._make(self.name_of(sample))

    def check(self, samples: Iterable[Sample]) -> None:
        """Finds out before anything takes long whether samples such as these can be learned.

        Raises:
            InputError: the tokenizer lacks what a template needs, or its chat template does not say what an answer is.
        """
        for sample in samples:
            if (template := self.of(sample)).chat is not None:
                template.chat([("user", USER), ("assistant", _ASSISTANT)])

    def of_run(self, firsts: Iterable[Sample]) -> TemplateName:
        """The template for what the model of a run is asked.

        Args:
            firsts: the first sample of each train file, by which auto is chatml if one of them is.
        """
        if self._choice != "auto":
            return self._choice
        return "chatml" if "chatml" in map(self.name_of, firsts) else "base"

    def warn_of_lost_roles(self, samples: Iterable[Sample]) -> None:
        """Says how many chats lose the roles of their earlier turns."""
        lost = sum(bool(sample.turns) and self.of(sample).chat is None for sample in samples)
        if lost:
            log.warning(
                "%d chats have turns before their last question, such as a system prompt. Under template base they are "
                "text of the user's turn, and only the last answer is learned: a tokenizer with a chat template and "
                "data.template auto keep their roles",
                lost,
            )

    def name_of(self, sample: Sample) -> TemplateName:
        """`auto` is the tokenizer's chat template for a chat, if there is one. A plain text has no turns."""
        choice = sample.template or self._choice
        if sample.kind == "text":
            return "base"
        if choice != "auto":
            return choice
        return "chatml" if sample.kind == "chat" and self._tokenizer.chat_template else "base"


def make_template(name: TemplateName, tokenizer) -> Template:
    """The template of a tokenizer.

    Args:
        name: `base`: the text alone, one space before the answer (RULER's answer prefixes begin with one too), then
            the end token. `chatml`: the tokenizer's own chat template, in which the turns of a chat keep their roles.
        tokenizer: a transformers tokenizer.

    Raises:
        InputError: the tokenizer lacks an end token or a chat template, or its template changes the texts.
    """
    if name == "base":
        if tokenizer.eos_token is None:
            raise InputError("the tokenizer has no end token (eos_token), which ends every answer")
        return Template("", "", " ", tokenizer.eos_token)
    if not tokenizer.chat_template:
        raise InputError("template chatml: the tokenizer has no chat template; use an instruct model's, or base")
    chat = ChatTemplate(tokenizer)
    with applying():
        before, after = around(USER, chat.render([("user", USER)], opens_answer=True))
        _, end = around(_ASSISTANT, chat.render([("user", USER), ("assistant", _ASSISTANT)]))
    return Template(before, after, "", end.rstrip("\n"), chat)


def answer_ends(template: TemplateName, tokenizer) -> list[int]:
    """The id that ends an answer under a template; empty where one token does not."""
    ids = tokenizer(make_template(template, tokenizer).answer_end, add_special_tokens=False)["input_ids"]
    return ids if len(ids) == 1 else []


def between_turns(name: TemplateName, tokenizer) -> str:
    """The text between an answer, without what ended it, and the user's next turn.

    Under `base` it is a blank line: training has one between the turns of a chat, too.

    Raises:
        InputError: the tokenizer's chat template has no place for a second turn, or changes the texts.
    """
    if name == "base":
        return "\n\n"
    turns = [("user", USER), ("assistant", _ASSISTANT), ("user", _NEXT)]
    with applying():
        _, following = around(_ASSISTANT, ChatTemplate(tokenizer).render(turns))
        between, _ = around(_NEXT, following)
    return between
