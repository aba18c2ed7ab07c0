"""A chat under the tokenizer's own chat template: its text, and which parts of it a model learns."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from lrsa_lightning.errors import InputError

Turn: TypeAlias = tuple[str, str]  # role and content
Piece: TypeAlias = tuple[str, bool]  # a text, and whether its tokens are labels
# Stands for the content of the last user's turn, to find its place.
USER = "\x02user\x03"
_MARK = re.compile(r"\{%-?\s*generation\b")


@dataclass(frozen=True)
class RenderedChat:
    """The text of a chat that ends with a user's turn and an answer.

    Attributes:
        before: the text before the content of the last user's turn, in pieces.
        user: that content, as the template has it.
        after: the text between it and the answer.
        answer: the last answer as the model learns it, with what ends it.
    """

    before: list[Piece]
    user: str
    after: str
    answer: str


class ChatTemplate:
    """Renders chats through `apply_chat_template`.

    An answer is what follows the text of all turns before it and the generation prompt. This holds for each template
    whose text with the answer begins with that text. Others need generation marks.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def render(self, turns: Sequence[Turn], opens_answer: bool = False) -> str:
        """The text of turns.

        Args:
            turns: role and content of each.
            opens_answer: adds the generation prompt.
        """
        chat = _messages(turns)
        return self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens_answer)

    def __call__(self, turns: Sequence[Turn], learns_all: bool = False) -> RenderedChat:
        """The text of a chat whose last two turns are a user's and an assistant's.

        Args:
            turns: role and content of each.
            learns_all: whether earlier answers are labels too.

        Raises:
            InputError: the template does not take these turns in this order, changes or leaves out a text, or does not
                say which text is an answer.
        """
        with applying():
            return self._rendered(turns, learns_all)

    def _rendered(self, turns: Sequence[Turn], learns_all: bool) -> RenderedChat:
        *earlier, (_, user), answer = turns
        text = self.render(turns)
        before, rest = around(USER, self.render([*earlier, ("user", USER), answer]))
        shown = text[len(before) : len(text) - len(rest)]
        if shown.strip() != user.strip() or before + shown + rest != text:
            raise ValueError("it changes the text of the user's last turn")
        for role, content in earlier:
            if role != "assistant" and content.strip() not in before:  # of an answer a template may drop the thoughts
                raise ValueError(f"it leaves out the text of a turn of role {role}")
        *spans, (start, stop) = self._answers(turns, text, learns_all)
        after = text[len(before) + len(shown) : start]
        return RenderedChat([*_pieces(before, spans)], shown, after, text[start:stop])

    def _answers(self, turns: Sequence[Turn], text: str, learns_all: bool) -> list[tuple[int, int]]:
        """Where the answers to learn start and stop in the text."""
        learned = [at for at, (role, _) in enumerate(turns) if role == "assistant"][0 if learns_all else -1 :]
        try:
            spans = [self._after_generation_prompt(turns, at, text) for at in learned]
        except ValueError:
            spans = self._marked(turns)[-len(learned) :]
            if len(spans) != len(learned):
                raise
        for at, (start, stop) in zip(learned, spans, strict=True):
            if _letters(turns[at][1]) not in _letters(text[start:stop]):
                raise ValueError(f"it changes the answer in turn {at + 1}")
        return spans

    def _after_generation_prompt(self, turns: Sequence[Turn], at: int, text: str) -> tuple[int, int]:
        prompt, complete = self.render(turns[:at], opens_answer=True), self.render(turns[: at + 1])
        if not complete.startswith(prompt):
            raise ValueError("its generation prompt is not how the text of an answer begins")
        # What ends the answer, without the line end before the next turn, and without the end of the chat, as Phi-3's.
        answered = complete.rstrip("\n")
        shorter = answered.removesuffix(self._tokenizer.eos_token or "").rstrip("\n")
        if not text.startswith(answered) and not shorter.endswith(turns[at][1].strip()):
            answered = shorter
        if not text.startswith(answered):
            way_out = "with data.learn last only the last answer is learned"
            raise ValueError(f"the answer in turn {at + 1} changes once a turn follows: {way_out}")
        return len(prompt), len(answered)

    def _marked(self, turns: Sequence[Turn]) -> list[tuple[int, int]]:
        """Where the template's generation marks start and stop in the text; none without marks."""
        if not _MARK.search(str(self._tokenizer.chat_template)):
            return []
        encoded = self._tokenizer.apply_chat_template(
            _messages(turns),
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        spans: list[tuple[int, int]] = []
        was_marked = False
        for (start, stop), is_marked in zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True):
            if is_marked:
                spans[len(spans) - was_marked :] = [(spans[-1][0] if was_marked else start, stop)]
            was_marked = bool(is_marked)
        return spans


@contextmanager
def applying() -> Iterator[None]:
    """Names the chat template in errors of using it."""
    try:
        yield
    except Exception as error:  # a template may raise anything
        raise InputError(
            f"template chatml: the tokenizer's chat template cannot be used ({error}): it must hold the texts of user "
            "and assistant, each once and unchanged. Take another tokenizer, or template base"
        ) from error


def around(content: str, text: str) -> tuple[str, str]:
    """The text before and after a turn's content. Raises ValueError unless the text has it once."""
    before, *after = text.split(content)
    if len(after) != 1:
        raise ValueError(f"it shows the text of a turn {len(after)} times")
    return before, after[0]


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def _letters(text: str) -> str:
    """The text without white space: a template may trim an answer, or set its thoughts apart."""
    return "".join(text.split())


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    end = 0
    for start, stop in spans:
        yield from ((text[end:start], False), (text[start:stop], True))
        end = stop
    yield text[end:], False
