"""`lrsa chat`: questions one after the other, each answered on the cache of all turns before it."""

import sys
from collections.abc import Iterator

from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.commands.conversing import conversation_parser, conversing, sampling_of
from lrsa_lightning.errors import InputError

_DESCRIPTION = """Reads questions from the terminal, or lines of stdin, and answers each on stdout. One cache holds the
document and all turns, so a turn costs its own tokens alone. /exit, Ctrl-D or Ctrl-C ends; Ctrl-C during an answer ends
the answer. Example: lrsa chat runs/NAME --document book.txt"""


def make_parser() -> Parser:
    return conversation_parser("chat", _DESCRIPTION, has_question=False)


@conversing
def run(args: list[str] | None = None) -> None:
    """Answers questions until there are no more."""
    parser = make_parser()
    options = parser.instantiate_classes(parser.parse_args(args))
    sampling = sampling_of(options)
    from lrsa_lightning.conversation.display import summary
    from lrsa_lightning.conversation.session import Session

    session = Session(options, sampling)
    if (document := session.read()) is not None:
        print(summary(document), file=sys.stderr)
    for question in _questions():
        try:
            print(summary(session.ask(question)), file=sys.stderr)
        except InputError as mistake:
            if not sys.stdin.isatty():
                raise
            print(f"lrsa: {mistake}", file=sys.stderr)  # the conversation goes on as if it had not been asked


def _questions() -> Iterator[str]:
    """The lines of the terminal or of stdin that hold text, up to /exit."""
    for line in _typed() if sys.stdin.isatty() else sys.stdin:
        if line.strip() == "/exit":
            return
        if line.strip():
            yield line


def _typed() -> Iterator[str]:
    """Lines typed at a prompt, with the line editing of the terminal."""
    import readline  # noqa: F401  input() then edits lines and keeps a history

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
