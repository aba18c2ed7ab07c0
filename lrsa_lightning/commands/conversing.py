"""The options that `lrsa generate` and `lrsa chat` have in common."""

import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Literal, NoReturn

import torch
from jsonargparse import Namespace

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.command_line.input_boundary import refuse, report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.conversation.sampling import Sampling
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.errors import suggestion
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt

_INTERRUPTED = 130
_SMALLER = "give an --attention that holds fewer tokens, a smaller --prefill_chunk_size, or --device cpu"
_FIELDS = [field.name for field in fields(Sampling)]
_OPTIONS = ["document", "attention", "template", "seed", "device", "precision", "prefill_chunk_size"]


class _Parser(Parser):
    """Names an unknown option with the nearest known one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self.exit_on_error and (found := re.match(r"unrecognized arguments: --([\w-]+)", message, re.IGNORECASE)):
            refuse(f"--{found[1]} is no option of `{self.prog}`{_hint(found[1])}", ex)
        super().error(message, ex)


def conversation_parser(command: str, description: str, has_question: bool) -> Parser:
    """The parser of a command.

    Args:
        command: its name.
        description: for its help.
        has_question: whether it takes a question after the model.
    """
    parser = _Parser(prog=f"lrsa {command}", description=description)
    model_help = "Hugging Face folder or hub id, runs/NAME, or a checkpoint"
    parser.add_argument("model", type=str, metavar="MODEL_OR_RUN", help=model_help)
    if has_question:
        parser.add_argument("question", type=str | None, nargs="?", metavar="QUESTION", help="by default text on stdin")
    parser.add_argument("--document", type=str | None, help="text file that comes before the first question")
    attention_help = "file as configs/attention/*.yaml, or class and arguments; by default the run's own, else Vanilla"
    parser.add_argument("--attention", type=AttentionMode | None, enable_path=True, help=attention_help)
    template_help = "base or chatml; by default the run's, or the tokenizer's chat template if it has one"
    parser.add_argument("--template", type=TemplateName | None, help=template_help)
    parser.add_argument("--seed", type=NonNegativeInt, default=42, help="of the sampling")
    parser.add_argument("--device", type=Literal["auto", "cpu"], default="auto", help="auto: an accelerator if any")
    precision_help = "by default float32 on CPU, else bfloat16"
    parser.add_argument("--precision", type=Literal["bfloat16", "float32"] | None, help=precision_help)
    piece_help = "tokens in a forward pass of the prefill"
    parser.add_argument("--prefill_chunk_size", type=PositiveInt | None, help=piece_help)
    parser.add_class_arguments(Sampling)
    return parser


def _hint(name: str) -> str:
    from transformers import GenerationConfig

    if name in vars(GenerationConfig()):
        return ": one streamed answer has no use for this field of GenerationConfig"
    return suggestion(name, [*_OPTIONS, *_FIELDS])


def sampling_of(options: Namespace) -> Sampling:
    """The sampling options of a command line."""
    return Sampling(**{name: options[name] for name in _FIELDS})


def conversing(command: Callable) -> Callable:
    """Prints a user's mistake as one line, too little memory as well, and ends without a traceback on Ctrl-C."""

    @wraps(command)
    def running(*args):
        try:
            return report_input_errors(command)(*args)
        except torch.OutOfMemoryError as error:
            refuse(f"the device's memory is too small: {_SMALLER}", error)
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None

    return running
