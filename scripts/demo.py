"""Trains a small Qwen2.5 with LRSA from random weights on the CPU, and prints RULER scores before and after.

Makes a tokenizer and a small long-document QA set in LongAlign's format. Needs neither a hub nor an account.
Usage: python scripts/demo.py [--runs_dir DIR] [further arguments of `lrsa fit`]
"""

import os
import sys
import time
from pathlib import Path

from lrsa_lightning.cli import main as lrsa
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.metrics import METRICS, read_rows

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path("configs") / "demo.yaml"


def report(run: Path) -> str:
    """The command for full attention, and the first and the last scores of a run."""
    rows = read_rows(run / METRICS)
    checks = [{key: value for key, value in row.items() if key.startswith("ruler/niah")} for row in rows]
    checks = [check for check in checks if check]
    scores = [f"{key.removeprefix('ruler/'):<32}{checks[0][key]:>8g}{last:>8g}" for key, last in checks[-1].items()]
    lrsa_here = Path(sys.executable).parent / "lrsa"
    return f"""
The same data with full attention:
  {lrsa_here} fit --config {CONFIG} --model.attention configs/attention/vanilla.yaml

{"RULER score (0..100)":<32}{"before":>8}{"after":>8}
{chr(10).join(scores)}"""


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Runs the demo in the repository's root."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--runs_dir", default="runs", help="folder of the run's directory")
    options, further = parser.parse_known_args(arguments)
    os.chdir(ROOT)
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    lrsa(["fit", "--config", str(CONFIG), "--runs_dir", options.runs_dir, "--run_name", name, *further])
    print(report(Path(options.runs_dir) / name))


if __name__ == "__main__":
    main()
