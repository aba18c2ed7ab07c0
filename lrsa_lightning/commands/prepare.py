"""`lrsa prepare`: the data of a configuration, ahead of its runs."""

import sys

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.commands.training import OptionsCLI
from lrsa_lightning.data import LongContextDataModule

_DESCRIPTION = """usage: lrsa prepare [options of `lrsa fit`]

Prepares the data of a configuration ahead of time, so that its runs start at once. Needs neither weights nor an
accelerator, and logs nothing. `lrsa fit --help.LongContextDataModule` lists the keys of data.
Example: lrsa prepare --config configs/experiment/paper_32k.yaml --data.train_files my.jsonl"""


class DataCLI(OptionsCLI):
    """Parses the options of `lrsa fit`, but builds only the datamodule."""

    def instantiate_classes(self) -> None:
        self.datamodule = LongContextDataModule(**self.config.data)


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Prepares training and validation samples, and prints their folders."""
    if {"-h", "--help"} & set(sys.argv[1:] if args is None else args):
        print(_DESCRIPTION)
        return
    module = DataCLI(args, run=False, prog="lrsa prepare").datamodule
    module.prepare_data()
    for what in ("train", "val") if module.val_files else ("train",):
        prepared = module.prepare(what)
        print(f"{what}: {len(prepared)} samples in {prepared.folder}")
