"""Makes the paper's Table 1 and Figures 2 to 4, and one HTML page with all of them, from one or several runs.

A run is a directory of `lrsa fit` or a folder of scripts/eval_ruler.py, called by its name or by LABEL=PATH.
Usage: python scripts/report.py runs/vanilla runs/lrsa base=eval/qwen2.5-1.5b [--output report] [--step 4000]
"""

from pathlib import Path

from lrsa_lightning.command_line import ScriptParser
from lrsa_lightning.input_boundary import report_input_errors
from lrsa_lightning.ranges import NonNegativeInt
from lrsa_lightning.report import read_runs, write_report


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Writes the report and prints its table, its notes and its files."""
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder, or LABEL=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--step", type=NonNegativeInt, help="check of the runs; the last with scores otherwise")
    options = parser.parse_args(arguments)
    report = write_report(read_runs(options.runs, options.step), options.output)
    print(report.markdown)
    for note in report.notes:
        print(f"note: {note}")
    print("wrote:", *report.files, sep="\n  ")


if __name__ == "__main__":
    main()
