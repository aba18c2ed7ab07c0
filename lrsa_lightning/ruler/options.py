"""The options that the commands of RULER have in common."""

from argparse import SUPPRESS, Namespace

from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.samples import SampleSettings
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.tasks import TASKS, check_tasks, possible_tasks

PAPER_LENGTHS = [4096, 8192, 16384, 32768]


def add_sample_options(parser, tasks: str, lengths: list[int] | None = PAPER_LENGTHS) -> None:
    """Adds the options that decide which samples there are.

    Args:
        parser: of a command.
        tasks: the default tasks in words, for the help.
        lengths: the default; None where it depends on the checkpoint or the samples.
    """
    parser.add_argument("--tasks", type=str, nargs="+", help=f"RULER tasks; {tasks} by default")
    of_others = "" if lengths else "; by default those of --samples, of the checkpoint's run, or of the paper"
    parser.add_argument(
        "--lengths", type=PositiveInt, nargs="+", default=lengths, help=f"maximum tokens, new ones included{of_others}"
    )
    parser.add_argument("--num_samples", type=PositiveInt, default=500, help="samples of each task and length")
    parser.add_argument("--seed", type=NonNegativeInt, default=42, help="of the samples")
    parser.add_argument("--essays", type=str | None, help="PaulGrahamEssays.json(.gz), for six niah tasks")
    parser.add_argument("--squad", type=str | None, help="squad.json(.gz), for qa_1")
    parser.add_argument("--hotpotqa", type=str | None, help="hotpotqa.json(.gz), for qa_2")
    parser.add_argument("--english_words", type=str | None, help="english_words.json(.gz), for cwe beyond 64K tokens")
    parser.add_argument(
        "--skip_missing",
        action="store_true",
        help="leave tasks out whose file is missing, or whose text is too long for a length, instead of an error",
    )
    parser.add_argument("--official_compat", action="store_true", help=SUPPRESS)


def refuse_official_compat(owner: str, official_compat: bool | None) -> None:
    """Refuses a setting of earlier versions; ``owner`` is ``--`` or the class and a dot.

    Raises:
        InputError: it is true.
    """
    if official_compat:
        raise InputError(
            f"{owner}official_compat is gone: make samples with RULER's own prepare.py and score them with "
            "`lrsa eval --samples FOLDER`"
        )


def chosen_tasks(options: Namespace) -> list[str]:
    """The tasks to make.

    Raises:
        InputError: a task is unknown or given twice, a length is given twice, or a file is missing or has another
            format.
    """
    tasks = options.tasks or list(TASKS)
    check_tasks(tasks, "--tasks")
    if options.lengths is not None:
        check_choice(options.lengths, "--lengths")
    return possible_tasks(tasks, _sources(options), options.skip_missing)


def sample_settings(options: Namespace, template: str) -> SampleSettings:
    """The settings of the samples."""
    return SampleSettings(options.seed, template, _sources(options))


def _sources(options: Namespace) -> Sources:
    return Sources(options.essays, options.squad, options.hotpotqa, options.english_words)
