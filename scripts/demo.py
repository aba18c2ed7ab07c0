"""The embedded default: fits a small Qwen2.5 with LRSA on the CPU, from nothing, and says where the results are.

Makes a small long-document QA set in LongAlign's format and a tokenizer, checks RULER, trains, checks again.
Needs no hub and no account. Usage: python scripts/demo.py [--runs_dir DIR] [further arguments of `lrsa fit`]
"""

import json
import os
import sys
import time
from pathlib import Path

from lrsa_lightning.cli import main as lrsa
from lrsa_lightning.command_line import ScriptParser
from lrsa_lightning.input_boundary import report_input_errors

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path("configs") / "demo.yaml"


def ruler_scores(metrics: Path) -> list[dict[str, float]]:
    """The RULER scores of a metrics file, one dict for each check, in order."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    checks = [{key: value for key, value in row.items() if key.startswith("ruler/niah")} for row in rows]
    return [check for check in checks if check]


def report(run: Path) -> str:
    """What a user wants to see at the end of a run."""
    checks = ruler_scores(run / "metrics.jsonl")
    lines = [f"{'RULER score (0..100)':<32}{'before':>8}{'after':>8}"]
    lines += [
        f"{name.removeprefix('ruler/'):<32}{checks[0][name]:>8g}{after:>8g}" for name, after in checks[-1].items()
    ]
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"loss curve:  {run / 'loss_curve.png'}",
            f"all metrics: {run / 'metrics.jsonl'}",
            f"checkpoint:  {run / 'checkpoints' / 'last.ckpt'}",
            f"config:      {run / 'config.yaml'}",
            "",
            "The same data with full attention:",
            f"  {Path(sys.executable).parent / 'lrsa'} fit --config {CONFIG} "
            "--model.attention configs/attention/vanilla.yaml",
        ]
    )


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
