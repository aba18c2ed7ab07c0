"""`lrsa eval`: a model's RULER scores."""

import sys
from pathlib import Path
from typing import Literal

from rich.progress import track

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, PositiveUnitInterval
from lrsa_lightning.ruler.options import add_sample_options, refuse_official_compat

_DESCRIPTION = """Scores a model on RULER: any attention, any cache budget, any length. A killed evaluation continues.

The model is a Hugging Face folder or hub id (--model) or a checkpoint of a run (--checkpoint). Each budget r < 1 is
LRSA's cache with lag = length / 32, as in the paper's Table 1; --attention adds a mode of your own. Results go to
OUTPUT/results.jsonl, which `lrsa report` reads. --samples takes the files of RULER's own prepare.py, for scores
that are exactly comparable with RULER's. --predictions runs no model: it scores files in RULER's own format (fields
pred and outputs).
Examples: lrsa eval --model Qwen/Qwen2.5-1.5B --output eval --lengths 4096 32768 --essays FILE ...
          lrsa eval --checkpoint runs/NAME/checkpoints/last.ckpt --output eval --skip_missing
          lrsa eval --model Qwen/Qwen2.5-1.5B --output eval --samples benchmark_root/NAME/synthetic
          lrsa eval --predictions pred/niah_single_1.jsonl pred/qa_1.jsonl"""


def make_parser() -> Parser:
    parser = Parser(prog="lrsa eval", description=_DESCRIPTION)
    parser.add_argument("--model", type=str | None, help="Hugging Face folder or hub id")
    parser.add_argument("--checkpoint", type=str | None, help="runs/<name>/checkpoints/<file>")
    parser.add_argument("--tokenizer", type=str | None, help="the model's own when not given")
    parser.add_argument("--output", type=str, default="ruler_eval", help="folder of the results")
    parser.add_argument(
        "--samples",
        type=str | None,
        help="folder of RULER's prepare.py or run.sh, or of `lrsa ruler`; our own samples by default",
    )
    parser.add_argument(
        "--template", type=TemplateName | None, help="base or chatml; that of its training, or base, when not given"
    )
    parser.add_argument(
        "--budgets", type=PositiveUnitInterval, nargs="*", default=[1.0, 0.5, 0.25], help="retention ratios; 1 dense"
    )
    parser.add_argument(
        "--attention", type=AttentionMode | None, enable_path=True, help="a further mode: file, or class and arguments"
    )
    parser.add_argument("--lag_divisor", type=PositiveInt, default=32, help="lag = length / lag_divisor")
    parser.add_argument("--sink_size", type=NonNegativeInt, default=16, help="sink of the compressed cache")
    parser.add_argument(
        "--batch_size",
        type=PositiveInt | Literal["auto"],
        default="auto",
        help="prompts decoded together, if they fit; auto: up to 32 on a GPU or NPU, 8 on a CPU",
    )
    parser.add_argument("--prefill_chunk_size", type=PositiveInt, default=4096, help="prompt tokens in a forward pass")
    parser.add_argument("--generation", type=bool, default=True, help="generate answers and score them")
    parser.add_argument("--teacher_forcing", type=bool, default=True, help="rate the references")
    parser.add_argument("--devices", type=PositiveInt, default=1, help="GPUs or NPUs, or processes on the CPU")
    parser.add_argument("--precision", type=Literal["bfloat16", "float32"] | None, help="by the device when not given")
    parser.add_argument("--predictions", type=str, nargs="+", help="score these files instead, named <task>.jsonl")
    add_sample_options(parser, "all 13, or those of --samples", lengths=None)
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Evaluates, or scores predictions, and prints the scores."""
    parser = make_parser()
    options = parser.parse_args(args)
    refuse_official_compat("--", options.official_compat)
    if options.predictions:
        from lrsa_lightning.ruler.scoring import score_file

        for path in map(Path, options.predictions):
            print(f"{path.stem:<20}{score_file(path)}")
        return
    if (options.model is None) == (options.checkpoint is None):
        raise InputError("give exactly one of --model and --checkpoint (or --predictions)")
    from lrsa_lightning.ruler.command import Evaluation
    from lrsa_lightning.ruler.progress import ProgressLines

    evaluation = Evaluation(parser.instantiate_classes(options))
    has_bar = sys.stdout.isatty()
    lines = ProgressLines("RULER", evaluation.num_batches)
    for records in track(evaluation.run(), "RULER", total=evaluation.num_batches, disable=not has_bar):
        if evaluation.is_first and not has_bar:
            lines.advance("/".join(map(str, records[0].cell)), evaluation.seconds_left)
    if evaluation.is_first:
        print(evaluation.summary())
