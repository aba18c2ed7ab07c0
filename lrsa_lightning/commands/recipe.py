"""`lrsa recipe`: training rows of questions and needles, without the texts of the evaluation."""

import os
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.ranges import AtLeastTwo, NonNegativeInt, PositiveInt, PositiveUnitInterval
from lrsa_lightning.recipe.folder import MANIFEST, TRAIN, Recipe, make_folder
from lrsa_lightning.ruler.sources import Sources

_DESCRIPTION = """Writes rows for `lrsa fit --data.train_files`: questions about one of many documents, and made-up
facts in long texts, each filled up to --length tokens. No article is in both rows and evaluation: OUTPUT also gets
squad.json, hotpotqa.json and essays.json with what was held out, for RulerEval and `lrsa eval`. The files are those of
RULER. Without them there are only facts, in filler and lists.
Example: lrsa recipe --tokenizer FOLDER --squad squad.json --essays PaulGrahamEssays.json --output data/recipe"""


def make_parser() -> Parser:
    parser, default = Parser(prog="lrsa recipe", description=_DESCRIPTION), Recipe()
    parser.add_argument("--tokenizer", type=str, required=True, help="hub id or folder; counts the tokens")
    parser.add_argument("--output", type=str, required=True, help="folder of the rows")
    parser.add_argument("--length", type=AtLeastTwo, default=default.length, help="tokens of a row: data.seq_len")
    parser.add_argument("--num_rows", type=NonNegativeInt, default=default.num_rows, help="rows to train on")
    parser.add_argument(
        "--num_val_rows", type=NonNegativeInt, default=default.num_val_rows, help="rows for data.val_files"
    )
    parser.add_argument("--template", type=TemplateName, default=default.template, help="data.template of the runs")
    fraction_help = "of the rows; the others have facts"
    parser.add_argument(
        "--question_fraction", type=PositiveUnitInterval, default=default.question_fraction, help=fraction_help
    )
    held_out_help = "fraction of each file that the evaluation keeps"
    parser.add_argument("--held_out", type=PositiveUnitInterval, default=default.held_out, help=held_out_help)
    parser.add_argument("--seed", type=NonNegativeInt, default=default.seed, help="of all draws")
    parser.add_argument("--workers", type=PositiveInt, default=os.cpu_count(), help="processes")
    parser.add_argument("--squad", type=str | None, help="SQuAD v2.0: squad.json(.gz)")
    parser.add_argument("--hotpotqa", type=str | None, help="HotpotQA (distractor): hotpotqa.json(.gz)")
    parser.add_argument("--essays", type=str | None, help="a long text: PaulGrahamEssays.json(.gz)")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Makes the folder and prints what is in it."""
    options = make_parser().parse_args(args)
    files = Sources(options.essays, options.squad, options.hotpotqa).given()
    tokenizer, folder = load_tokenizer(options.tokenizer, "--tokenizer"), Path(options.output)
    recipe = Recipe(**{name: options[name] for name in Recipe.__dataclass_fields__})
    made = make_folder(recipe, files, tokenizer, folder, options.workers)
    for name, rows in made["rows"].items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in rows["kinds"].items())
        print(f"{folder / name}: {kinds}; {rows['mean_tokens']} tokens a row")
    print(
        f"held out for the evaluation: {', '.join(str(folder / f'{name}.json') for name in files) or 'no file given'}"
    )
    print(f"lrsa fit --data.train_files {folder / TRAIN} ...; {folder / MANIFEST} says how it was made")
