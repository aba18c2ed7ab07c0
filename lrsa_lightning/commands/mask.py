"""`lrsa mask`: a figure of what each query sees under a rule."""

from pathlib import Path

from lrsa_lightning.attention import LRSA, AttentionMode
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveInt

_DESCRIPTION = """Draws the mask of a rule: what each query sees of the sink, kept tokens, previous chunk and own chunk.

It needs no model: the tokens that are kept are those of random keys and values.
Examples: lrsa mask --output mask.png
          lrsa mask --attention configs/attention/lrsa_r25.yaml --tokens 8192"""


def make_parser() -> Parser:
    parser = Parser(prog="lrsa mask", description=_DESCRIPTION)
    parser.add_argument("--output", type=str, default="mask.png", help="the PNG file")
    attention_help = "the rule: file as configs/attention/*.yaml, or class and arguments; a small one by default"
    parser.add_argument("--attention", type=AttentionMode | None, enable_path=True, help=attention_help)
    parser.add_argument("--tokens", type=PositiveInt | None, help="of the sequence; the sink and 4.5 chunks by default")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Draws the figure."""
    parser = make_parser()
    options = parser.instantiate_classes(parser.parse_args(args))
    mode = options.attention or LRSA(lag_size=16, sink_size=4)
    path = Path(options.output)
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise InputError(f"--output is {options.output!r}, but must be a .png file in a folder that exists")
    from lrsa_lightning.diagnosis.diagnose import check_mode
    from lrsa_lightning.diagnosis.mask_figure import draw_mask

    check_mode(mode)
    draw_mask(mode, options.tokens or mode.sink_size + 9 * mode.lag_size // 2, path)
    print(path)
