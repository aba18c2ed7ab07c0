"""`lrsa generate`: one question, about a document or not, and its answer on stdout."""

import sys

from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.commands.conversing import conversation_parser, conversing, sampling_of
from lrsa_lightning.errors import InputError

_DESCRIPTION = """Answers a question on stdout, word by word; what it took is the last line on stderr.
Example: lrsa generate runs/NAME "Who wrote the letter?" --document book.txt"""


def make_parser() -> Parser:
    return conversation_parser("generate", _DESCRIPTION, has_question=True)


@conversing
def run(args: list[str] | None = None) -> None:
    """Answers the question of a command line, or the one on stdin."""
    parser = make_parser()
    options = parser.instantiate_classes(parser.parse_args(args))
    sampling = sampling_of(options)
    question = _question(options.question)
    from lrsa_lightning.conversation.display import summary
    from lrsa_lightning.conversation.session import Session

    session = Session(options, sampling)
    session.plan(question)
    print(summary(session.ask(question)), file=sys.stderr)


def _question(given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        raise InputError('give a question: lrsa generate MODEL_OR_RUN "QUESTION", or text on stdin')
    question = sys.stdin.read() if given is None else given
    if not question.strip():
        raise InputError("the question is empty: give a text")
    return question
