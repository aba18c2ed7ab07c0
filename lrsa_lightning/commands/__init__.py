"""The subcommands of `lrsa`, for help, dispatch and completion. A module imports what its subcommand needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        description: one line, for the help of `lrsa`.
        function: the function that runs it, as `module:name` below this package. It takes the arguments after the name.
    """

    description: str
    function: str

    def load(self) -> Callable[[list[str]], None]:
        """The function. Imports its module."""
        return resolve_name(f"{__name__}.{self.function}")


COMMANDS = {
    "fit": Command("train a model, or resume a run: lrsa fit --config configs/demo.yaml", "training:fit"),
    "validate": Command(
        "measure a checkpoint: lrsa validate --config runs/NAME/config.yaml --ckpt_path last", "training:validate"
    ),
    "plan": Command(
        "predict memory and time of a run: lrsa plan --config configs/experiment/paper_32k.yaml --device h100",
        "plan:run",
    ),
    "prepare": Command("prepare the data of runs ahead of them: lrsa prepare --config FILE", "prepare:run"),
    "inspect": Command("show what a configuration makes of its data: lrsa inspect --config FILE", "inspect:run"),
    "sweep": Command("run the cells of a sweep file here: lrsa sweep configs/sweeps/demo.yaml", "sweep:run"),
    "eval": Command("score a model on RULER: lrsa eval --checkpoint runs/NAME/checkpoints/last.ckpt", "eval:run"),
    "ruler": Command("write RULER samples: lrsa ruler --tokenizer Qwen/Qwen2.5-1.5B --output ruler", "ruler:run"),
    "report": Command("compare runs in tables, figures and a page: lrsa report runs/A runs/B", "report:run"),
    "export": Command("make a Hugging Face folder of a run: lrsa export runs/NAME --output exported", "export:run"),
    "lm_eval": Command(
        "run lm-eval on an exported folder: lrsa lm_eval --model lrsa --model_args pretrained=FOLDER --tasks TASK",
        "lm_eval:run",
    ),
    "generate": Command(
        'answer a question about a document: lrsa generate runs/NAME "QUESTION" --document book.txt', "generate:run"
    ),
    "chat": Command(
        "answer questions one after the other, on one cache: lrsa chat runs/NAME --document book.txt", "chat:run"
    ),
}
