"""Options that the benches share."""

from pathlib import Path

from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import PositiveFiniteFloat, PositiveInt, PositiveUnitInterval


def add_model_options(parser: ScriptParser) -> None:
    """The model's shape, and the rules of LRSA's rows."""
    parser.add_argument(
        "--model", default="qwen2.5-1.5b", help="a shape (tiny, qwen2.5-0.5b, -1.5b, -7b), or JSON keys"
    )
    parser.add_argument("--ratios", type=PositiveUnitInterval, nargs="+", default=[0.5, 0.25], help="of LRSA")
    parser.add_argument("--lag", type=PositiveInt, default=1024, help="lag size of LRSA")


def add_row_options(parser: ScriptParser) -> None:
    """Which rows to measure, for how long, and where their figures go."""
    parser.add_argument("--rows", default="", help="regular expression for the rows to measure; default: all")
    parser.add_argument("--row-timeout", type=PositiveFiniteFloat, default=300.0, help="seconds for one row")
    parser.add_argument("--json", type=Path, help="file for all figures, written after each row")
