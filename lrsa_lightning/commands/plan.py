"""`lrsa plan`: what a run will take, before anything is loaded."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Literal

import torch

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.commands.training import OptionsCLI
from lrsa_lightning.distributed.choice import check_choice
from lrsa_lightning.errors import InputError
from lrsa_lightning.plan import Run, as_json, fitting_options, predict, print_report
from lrsa_lightning.plan.at_start import device_at_hand
from lrsa_lightning.plan.devices import DEVICES, Device
from lrsa_lightning.plan.options import way_out
from lrsa_lightning.plan.sequence import possible_degrees
from lrsa_lightning.pretrained.decoder import check_length
from lrsa_lightning.ranges import PositiveInt

# Degrees of sequence parallelism that are shown even where there are fewer devices.
_DEGREES = 16


class _DeviceCLI(OptionsCLI):
    """Adds the options of `lrsa plan`."""

    def add_arguments_to_parser(self, parser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--device", type=Literal[tuple(DEVICES)] | None, default=None, help="Device; by default the one at hand."
        )
        parser.add_argument(
            "--devices",
            type=PositiveInt | None,
            default=None,
            help="Number of devices; by default trainer.devices x trainer.num_nodes.",
        )
        parser.add_argument("--json", action="store_true", help="Print JSON: bytes and seconds.")


class PlanCLI(_DeviceCLI):
    """Makes only the module, which loads no weights."""

    def before_instantiate_classes(self) -> None:
        check_choice(self.config.trainer.strategy)

    def instantiate_classes(self) -> None:
        given = self.config.clone()
        # The trainer's parts may need an accelerator, a package or files.
        given.trainer.strategy = "auto"
        for part in ("callbacks", "logger", "plugins", "profiler"):
            given.trainer[part] = None
        self.model = self.parser.instantiate_classes(given).model


def make_parser() -> Parser:
    """The parser of the options."""
    return _DeviceCLI([], run=False).parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Prints the plan for the options of a command line; by default that of the process."""
    args = sys.argv[1:] if args is None else args
    is_json = "--json" in args
    with redirect_stdout(sys.stderr) if is_json else nullcontext():  # DeepSpeed's log would get into the JSON
        parts = _plan(args)
    if is_json:
        print(json.dumps(as_json(*parts), indent=1))
    else:
        print_report(*parts)


def _plan(args: list[str]) -> tuple:
    """The arguments of `print_report`."""
    cli = PlanCLI(args, run=False, prog="lrsa plan")
    given, device = cli.config, _device(cli.config.device)
    planned = Run.of(given, cli.model, given.devices or _num_devices(given.trainer))
    check_length(planned.config, planned.seq_len)
    planned.mode.check(planned.config)
    prediction = predict(planned, device)
    degrees = possible_degrees(planned.config, planned.mode, planned.seq_len, max(_DEGREES, planned.division.devices))
    fitting = fitting_options(planned, device)
    return planned, prediction, degrees, fitting, None if fitting else way_out(planned, device)


def _device(name: str | None) -> Device:
    if name is not None:
        return DEVICES[name]
    for kind in ("cuda", "npu"):
        if hasattr(torch, kind) and torch.get_device_module(kind).is_available():
            return device_at_hand(torch.device(kind, 0))
    raise InputError(f"there is no accelerator here: name the device with --device, one of {', '.join(DEVICES)}")


def _num_devices(trainer) -> int:
    """The devices that the configuration names; all of this host for auto, one where there is none."""
    given = trainer.devices
    if isinstance(given, list):
        return len(given) * trainer.num_nodes
    if isinstance(given, str) and "," in given:
        return len([part for part in given.split(",") if part.strip()]) * trainer.num_nodes
    if str(given) in ("auto", "-1"):
        return max(1, torch.accelerator.device_count()) * trainer.num_nodes
    return int(given) * trainer.num_nodes
