"""`lrsa serve`: vLLM's own server for a folder or a run, after checks that take seconds."""

import json
import os
import shlex
import sys
from collections.abc import Sequence

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveUnitInterval

_DESCRIPTION = """Serves a model with vLLM on its compressed cache, by vLLM's OpenAI API.

A run is exported into its directory first. The rule, vLLM's version and the plug-in are checked; then this process
becomes `vllm serve FOLDER`. Options that are not listed here go to vLLM as they are; give them after MODEL_OR_RUN.
Examples: lrsa serve runs/NAME --port 8000
          lrsa serve FOLDER --retention_ratio 0.25 --max-model-len 131072
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa serve")
    given = "runs/NAME, a checkpoint of it, a Hugging Face folder, or a hub id"
    parser.add_argument("source", metavar="MODEL_OR_RUN", help=given)
    parser.add_argument(
        "--retention_ratio", type=PositiveUnitInterval, help="in place of the folder's; 1 runs full attention"
    )
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Checks, and becomes vLLM's server.

    Raises:
        InputError: vLLM is not there, or cannot serve the model exactly.
    """
    args = sys.argv[2:] if args is None else args
    if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
        raise InputError(f"give MODEL_OR_RUN before {args[0]}: lrsa serve MODEL_OR_RUN {args[0]} ...")
    options, further = make_parser().parse_known_args(args)
    from lrsa_lightning.serving.installed_vllm import InstalledVLLM

    vllm = InstalledVLLM.find()
    from lrsa_lightning.serving.served_model import ServedModel

    model = ServedModel.of(options.source)
    model.check(vllm.device_type, options.retention_ratio)
    arguments = model.engine(options.retention_ratio)
    command = vllm.server(arguments.pop("model"), [*_flags(arguments, further), *further])
    print(shlex.join(command), file=sys.stderr, flush=True)
    os.execv(command[0], command)


def _flags(arguments: dict, further: Sequence[str]) -> list[str]:
    """Arguments of the engine as options of vLLM's command.

    Raises:
        InputError: the user gives one of them, too; vLLM would take one without a word.
    """
    flags = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if any(given.replace("_", "-").startswith(flag) for given in further):
            raise InputError(f"{flag} is needed for {json.dumps(value)}: run vllm serve yourself, with both in one")
        flags += [flag, json.dumps(value)]
    return flags
