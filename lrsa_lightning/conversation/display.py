"""What a user sees of a turn: the prefill's progress, the answer as it comes, and what it took."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import TextStreamer

from lrsa_lightning.conversation.conversation import Answer

_LINE_EVERY_S = 10


class AnswerStream(TextStreamer):
    """Prints the answer on stdout, word by word, without the blanks before it."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_special_tokens=True)
        self._has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not self._has_begun:
            text = text.lstrip()
        self._has_begun = not stream_end and (self._has_begun or bool(text))
        super().on_finalized_text(text, stream_end)


class PrefillProgress:
    """Shows a prefill on stderr within a `with` block: a bar on a terminal, elsewhere a line every ten seconds."""

    def __enter__(self) -> "PrefillProgress":
        self._bar = _bar() if sys.stderr.isatty() else None
        self._shown = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Shows that so many of a turn's tokens are prefilled."""
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
            if done == total:
                self._bar.stop()  # the answer follows
        elif 0 < done < total and time.monotonic() - self._shown >= _LINE_EVERY_S:
            self._shown = time.monotonic()
            print(f"prefill: {done:,} of {total:,} tokens", file=sys.stderr, flush=True)


def _bar() -> Progress:
    columns = TextColumn("prefill"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("prefill")
    return bar


def summary(answer: Answer) -> str:
    """One line: tokens and their speed, and the bytes of the cache against those of all tokens."""
    prompt, new = answer.prompt_tokens, answer.new_tokens
    text = f"{prompt:,} prompt tokens in {answer.prefill_seconds:.1f} s ({prompt / answer.prefill_seconds:,.0f}/s)"
    if new:
        text += f", {new:,} new in {answer.decoding_seconds:.1f} s ({new / answer.decoding_seconds:,.1f}/s)"
    held, dense = answer.cache_bytes, answer.dense_bytes
    return f"{text}; cache {_size(held)}, dense {_size(dense)} ({100 * held / dense:.0f}%)"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.1f} KiB"
