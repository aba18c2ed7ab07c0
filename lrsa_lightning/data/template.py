"""The text that a model reads for a user's turn, in training and in RULER, and between two turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lrsa_lightning.errors import InputError

TemplateName: TypeAlias = Literal["base", "chatml"]
Piece: TypeAlias = tuple[str, bool]  # a text, and whether its tokens are labels
_USER, _ASSISTANT, _NEXT = "\x02user\x03", "\x02assistant\x03", "\x02next\x03"


@dataclass(frozen=True)
class Template:
    """Texts around a user's turn and after the answer.

    Attributes:
        before: text before the user's turn.
        after: text between it and the answer.
        answer_start: text that begins the answer.
        answer_end: text that ends the answer; its tokens are labels too.
        tokenizer: whose chat template gives earlier turns their roles; None where they are text of the user's turn.
    """

    before: str
    after: str
    answer_start: str
    answer_end: str
    tokenizer: Any = field(default=None, compare=False, repr=False)

    def before_last(self, turns: Sequence[tuple[str, str]]) -> str:
        """The text before a user's turn that comes after others.

        Args:
            turns: role and content of the earlier ones.

        Raises:
            InputError: the chat template does not take these roles in this order, or leaves a text out.
        """
        if self.tokenizer is None or not turns:
            return self.before
        chat = [{"role": role, "content": content} for role, content in [*turns, ("user", _USER)]]
        with _applying():
            text, _ = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).split(_USER)
            for role, content in turns:
                if role != "assistant" and content.strip() not in text:  # of an answer a template may drop the thoughts
                    raise ValueError(f"it leaves out the text of a turn of role {role}")
        return text

    def with_answers(self, text: str, turns: Sequence[tuple[str, str]]) -> list[Piece]:
        """The text of `before_last` in pieces: each answer with what ends it, and what is between them.

        Raises:
            InputError: the chat template changes an answer.
        """
        pieces, start, at = [], 0, 0
        with _applying():
            for role, content in turns:
                begin = text.index(content.strip(), at)
                at = begin + len(content.strip())
                if role == "assistant":
                    at += len(self.answer_end) if text.startswith(self.answer_end, at) else 0
                    pieces += [(text[start:begin], False), (text[begin:at], True)]
                    start = at
        return [*pieces, (text[start:], False)]


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
    user = [{"role": "user", "content": _USER}]
    turns = [*user, {"role": "assistant", "content": _ASSISTANT}]
    with _applying():
        before, after = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True).split(_USER)
        _, end = tokenizer.apply_chat_template(turns, tokenize=False).split(_ASSISTANT)
    return Template(before, after, "", end.rstrip("\n"), tokenizer)


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
    roles = {_USER: "user", _ASSISTANT: "assistant", _NEXT: "user"}
    turns = [{"role": role, "content": content} for content, role in roles.items()]
    with _applying():
        _, following = tokenizer.apply_chat_template(turns, tokenize=False).split(_ASSISTANT)
        between, _ = following.split(_NEXT)
    return between


@contextmanager
def _applying() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a template may raise anything
        raise InputError(
            f"template chatml: the tokenizer's chat template cannot be used ({error}): it must hold the texts of user "
            "and assistant, each once and unchanged. Take another tokenizer, or template base"
        ) from error
