"""The subcommands of `lrsa`, for help, dispatch and completion. A module imports what its subcommand needs."""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        description: one line, for the help of `lrsa`.
        function: runs it; takes the arguments after the name.
        options: make the parsers of its options.

    Functions are `module:name` below this package.
    """

    description: str
    function: str
    options: tuple[str, ...]

    def load(self) -> Callable[[list[str]], None]:
        """The function. Imports its module."""
        return _resolve(self.function)

    def parsers(self) -> list[ArgumentParser]:
        """The parsers of its options."""
        return [_parser(name) for name in self.options]


def _resolve(name: str) -> Callable:
    return resolve_name(f"{__name__}.{name}")


@cache
def _parser(name: str) -> ArgumentParser:
    return _resolve(name)()


def _own(module: str, description: str) -> Command:
    """A subcommand with a module and a parser of its own."""
    return Command(description, f"{module}:run", (f"{module}:make_parser",))


_OF_FIT = ("training:make_parser",)
COMMANDS = {
    "fit": Command("train a model, or resume a run: lrsa fit --config configs/demo.yaml", "training:fit", _OF_FIT),
    "validate": Command(
        "measure a checkpoint: lrsa validate --config runs/NAME/config.yaml --ckpt_path last",
        "training:validate",
        _OF_FIT,
    ),
    "plan": _own(
        "plan", "predict memory and time of a run: lrsa plan --config configs/experiment/paper_32k.yaml --device h100"
    ),
    "prepare": Command("prepare the data of runs ahead of them: lrsa prepare --config FILE", "prepare:run", _OF_FIT),
    "inspect": Command(
        "show what a configuration makes of its data: lrsa inspect --config FILE",
        "inspect:run",
        ("inspect:make_parser", *_OF_FIT),
    ),
    "recipe": _own(
        "recipe", "write training rows of questions and needles: lrsa recipe --tokenizer FOLDER --output DIR"
    ),
    "sweep": _own("sweep", "run the cells of a sweep file here: lrsa sweep configs/sweeps/demo.yaml"),
    "eval": _own("eval", "score a model on RULER: lrsa eval --checkpoint runs/NAME/checkpoints/last.ckpt"),
    "ruler": _own("ruler", "write RULER samples: lrsa ruler --tokenizer Qwen/Qwen2.5-1.5B --output ruler"),
    "report": _own("report", "compare runs in tables, figures and a page: lrsa report runs/A runs/B"),
    "diagnose": _own("diagnose", "show what a rule keeps of texts: lrsa diagnose runs/NAME --data FILE"),
    "mask": _own("mask", "draw what each query sees under a rule: lrsa mask --output mask.png"),
    "export": _own("export", "make a Hugging Face folder of a run: lrsa export runs/NAME --output exported"),
    "lm_eval": Command(
        "run lm-eval on an exported folder: lrsa lm_eval --model lrsa --model_args pretrained=FOLDER --tasks TASK",
        "lm_eval:run",
        (),  # lm-eval parses its own
    ),
    "generate": _own(
        "generate", 'answer a question about a document: lrsa generate runs/NAME "QUESTION" --document book.txt'
    ),
    "chat": _own("chat", "answer questions one after the other, on one cache: lrsa chat runs/NAME --document book.txt"),
    "serve": _own("serve", "serve a model with vLLM, compressed: lrsa serve runs/NAME --port 8000"),
    "bench-serve": _own("bench_serve", "compare vLLM with and without compression here: lrsa bench-serve FOLDER"),
    "doctor": _own("doctor", "show devices, versions, what a run would use and what is missing: lrsa doctor"),
    "completion": _own("completion", "print a script for a shell: lrsa completion bash"),
}
