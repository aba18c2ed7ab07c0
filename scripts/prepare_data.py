"""Prepares the data of a configuration ahead of time, so that its runs start at once.

Takes the options of `lrsa fit`. Needs neither weights nor an accelerator, and logs nothing.
Usage: python scripts/prepare_data.py --config configs/experiment/paper_32k.yaml --data.train_files my.jsonl
"""

import sys

from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.input_boundary import report_input_errors


class DataCLI(LRSACLI):
    """Parses the options of `lrsa fit`, but builds only the datamodule."""

    def before_instantiate_classes(self) -> None:
        """Skips the run directory: there is no run."""

    def instantiate_classes(self) -> None:
        self.datamodule = LongContextDataModule(**self.config.data)


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Prepares training and validation samples, and prints their folders."""
    if {"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments):
        print(__doc__, "usage: see `lrsa fit --help.LongContextDataModule` for the keys of data", sep="\n")
        return
    module = DataCLI(arguments, run=False).datamodule
    module.prepare_data()
    for what in ("train", "val") if module.val_files else ("train",):
        prepared = module.prepare(what)
        print(f"{what}: {len(prepared)} samples in {prepared.folder}")


if __name__ == "__main__":
    main()
