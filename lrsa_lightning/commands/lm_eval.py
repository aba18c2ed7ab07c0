"""`lrsa lm_eval`: lm-eval's own command, which then knows the model `lrsa`."""

import sys

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.errors import InputError


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Runs lm-eval with its own options. It reads them from the command line of the process.

    Raises:
        InputError: lm-eval is not installed.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        import lrsa_lightning.serving.lm_eval  # noqa: F401  registers the model
    except ModuleNotFoundError as error:
        raise InputError(f"lrsa lm_eval needs lm-eval ({error}): pip install 'lrsa-lightning[eval]'") from error
    before = sys.argv
    sys.argv = ["lm_eval", *(before[2:] if args is None else args)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
