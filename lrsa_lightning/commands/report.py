"""`lrsa report`: tables, figures and a page of runs."""

from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import NonNegativeInt

_DESCRIPTION = """Makes tables and figures of scores, losses and their cost (cache bytes, time), and an HTML page
with them, from one or several runs.

A run is a directory of `lrsa fit` or a folder of `lrsa eval`, called by its name or by LABEL=PATH. Runs whose
configurations differ in the seed alone are an arm: table_arms has its mean, with errors over samples and over seeds.
Example: lrsa report runs/vanilla runs/lrsa base=eval/qwen2.5-1.5b --output report --step 4000
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa report")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder, or LABEL=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--baseline", metavar="LABEL", help="also write differences to this run, sample by sample")
    keep_help = "also write what the report is made of there, small and without texts: reports of FOLDER/* are the same"
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help=keep_help)
    parser.add_argument("--step", type=NonNegativeInt, help="check of the runs; the last with scores otherwise")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Writes the report and prints its table, its notes and its files."""
    options = make_parser().parse_args(args)
    from lrsa_lightning.report import keep, read_runs, write_report

    runs = read_runs(options.runs, options.step)
    report = write_report(runs, options.output, options.baseline)
    kept = [] if options.keep is None else keep(runs, options.keep)
    print(report.markdown)
    for note in report.notes:
        print(f"note: {note}")
    print("wrote:", *report.files, *kept, sep="\n  ")
