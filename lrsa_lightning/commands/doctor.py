"""`lrsa doctor`: what this machine has, what a run would use of it, and what is missing."""

import logging
import sys
from contextlib import redirect_stdout
from dataclasses import asdict

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser

_DESCRIPTION = """Prints versions, devices, free memory and disk, optional packages, what a run would use (accelerator,
strategy, precision, attention backend, fused layers), and what is missing, with the command that installs it.

The exit status is 1 if a device of this machine cannot be used or needs a package, or if a package is outside the range
that is tested.
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa doctor")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Prints what was found. Exit status 1 if something is missing."""
    is_json = make_parser().parse_args(args).json
    logging.getLogger("lrsa_lightning.attention").setLevel(logging.WARNING)  # the report says the choice
    with redirect_stdout(sys.stderr):  # packages print when they are imported
        from lrsa_lightning.doctor import examine

        found = examine()
    if is_json:
        import json

        print(json.dumps(asdict(found), indent=1))
    else:
        print(found)
    if found.missing:
        sys.exit(1)
