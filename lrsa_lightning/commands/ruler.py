"""`lrsa ruler`: RULER samples as files."""

import logging
import os
from itertools import product
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.ranges import PositiveInt
from lrsa_lightning.ruler.options import add_sample_options, chosen_tasks, refuse_official_compat, sample_settings
from lrsa_lightning.ruler.store import SampleStore, make_in_parallel

log = logging.getLogger(__name__)
_DESCRIPTION = """Writes RULER samples in the official format: OUTPUT/<length>/<task>/validation.jsonl, each beside its
manifest. Keeps existing samples of the same settings and refuses others.
Example: lrsa ruler --tokenizer Qwen/Qwen2.5-1.5B --output ruler --essays PaulGrahamEssays.json"""


def make_parser() -> Parser:
    parser = Parser(prog="lrsa ruler", description=_DESCRIPTION)
    parser.add_argument("--tokenizer", type=str, required=True, help="hub id or folder; counts the tokens")
    parser.add_argument("--output", type=str, default="ruler", help="folder of the samples")
    parser.add_argument("--template", type=TemplateName, default="base", help="around the user's turn")
    parser.add_argument("--workers", type=PositiveInt, default=os.cpu_count(), help="processes")
    add_sample_options(parser, "all 13")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Makes the samples and prints their files."""
    options = make_parser().parse_args(args)
    refuse_official_compat("--", options.official_compat)
    tasks = chosen_tasks(options)
    tokenizer = load_tokenizer(options.tokenizer, "--tokenizer")
    store = SampleStore(Path(options.output), tokenizer, sample_settings(options, options.template))
    cells, log_skipped = product(tasks, options.lengths), log.warning if options.skip_missing else None
    for path in make_in_parallel(store, cells, options.num_samples, options.workers, log_skipped):
        print(path, flush=True)
