"""`lrsa inspect`: what a configuration makes of its data."""

import argparse
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import NonNegativeInt

_DESCRIPTION = """Shows the data of a configuration: lengths, languages, templates, and what is learned of a sample.

The lengths are histograms in a PNG file, too. Takes the options of `lrsa fit` besides its own. Prepares the data if
necessary.
Example: lrsa inspect --config configs/experiment/paper_32k.yaml --data.train_files my.jsonl
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa inspect")
    parser.add_argument("--output", type=_picture, default=Path("data_lengths.png"), help="file of the histograms")
    parser.add_argument("--sample", type=NonNegativeInt, default=0, help="number of the prepared sample to print")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Draws the histograms, and prints the summary and a sample."""
    parser = make_parser()
    options, further = parser.parse_known_args(args)
    from rich.console import Console

    from lrsa_lightning.commands.prepare import DataCLI
    from lrsa_lightning.data.inspection import BEGIN, END, draw_lengths, marked, summary
    from lrsa_lightning.data.tokenization import LongTokenizer

    module = DataCLI(further, run=False, prog=parser.prog).datamodule
    module.prepare_data()
    prepared, samples = module.prepare("train"), module.corpus.samples("train")
    if options.sample >= len(prepared):
        parser.error(f"--sample is {options.sample}, but must be from 0 to {len(prepared) - 1}")
    tokenize = LongTokenizer(module.tokenizer)
    own = [len(tokenize(sample.prompt)) + len(tokenize(sample.answer)) for sample in samples]
    draw_lengths(own, prepared, module.seq_len, options.output)
    names = [*map(module.templates.name_of, samples)]
    print(summary(samples, own, prepared, module.seq_len, names))
    print(f"lengths         {options.output}\n\nsample {options.sample}; what is learned is between {BEGIN} and {END}:")
    Console().print(marked(prepared[options.sample], module.tokenizer), soft_wrap=True)


def _picture(path: str) -> Path:
    if Path(path).suffix != ".png" or not Path(path).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"is {path!r}, but must be a .png file in a folder that exists")
    return Path(path)
