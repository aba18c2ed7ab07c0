"""`lrsa diagnose`: what a rule keeps of texts, and how much of full attention that holds."""

import logging
import sys
from pathlib import Path
from typing import Literal

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import Parser
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.ranges import PositiveInt

log = logging.getLogger(__name__)
_DESCRIPTION = """Shows what a rule keeps of texts, by layer and head: heat maps, a table, and a JSON file in OUTPUT.

Kept tokens are counted by place in the text, by place in the chunk and by class: document, question, needle (the
sentences that hold the answer, in RULER's samples) and punctuation. The fraction of full attention's mass that is on
visible keys is exact.
Examples: lrsa diagnose runs/NAME --data ruler/4096/niah_multikey_1/validation.jsonl
          lrsa diagnose Qwen/Qwen2.5-1.5B --data held_out.jsonl --attention configs/attention/lrsa.yaml --extend true"""


def make_parser() -> Parser:
    parser = Parser(prog="lrsa diagnose", description=_DESCRIPTION)
    model_help = "Hugging Face folder or hub id, runs/NAME, or a checkpoint"
    parser.add_argument("model", type=str, metavar="MODEL_OR_RUN", help=model_help)
    data_help = "held-out texts: samples of `lrsa ruler` or of RULER's scripts, or rows as data.train_files has them"
    parser.add_argument("--data", type=str, nargs="+", required=True, metavar="FILE", help=data_help)
    parser.add_argument("--output", type=str, default="diagnosis", help="folder of the results")
    attention_help = "the rule to apply: file as configs/attention/*.yaml, or class and arguments; the run's by default"
    parser.add_argument("--attention", type=AttentionMode | None, enable_path=True, help=attention_help)
    forward_help = "how layers attend: under the rule, as with the compressed cache, or fully"
    parser.add_argument("--forward", type=Literal["rule", "full"], default="rule", help=forward_help)
    parser.add_argument("--num_texts", type=PositiveInt, default=8, help="of each file")
    length_help = "leaves longer texts out; the run's data.seq_len by default, else the model's positions, up to 32768"
    parser.add_argument("--max_tokens", type=PositiveInt | None, help=length_help)
    extend_help = "fill rows up to max_tokens with sections of other rows, as training does"
    parser.add_argument("--extend", type=bool, default=False, help=extend_help)
    queries_help = "queries of a text whose mass is measured, evenly spaced"
    parser.add_argument("--max_queries", type=PositiveInt, default=4096, help=queries_help)
    template_help = "base or chatml; by default the run's, or the tokenizer's chat template if it has one"
    parser.add_argument("--template", type=TemplateName | None, help=template_help)
    parser.add_argument("--device", type=Literal["auto", "cpu"], default="auto", help="auto: an accelerator if any")
    precision_help = "by default float32 on CPU, else bfloat16"
    parser.add_argument("--precision", type=Literal["bfloat16", "float32"] | None, help=precision_help)
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Measures, writes the results and prints the table."""
    parser = make_parser()
    options = parser.instantiate_classes(parser.parse_args(args))
    from rich.console import Console
    from rich.progress import track

    from lrsa_lightning.diagnosis.command import Diagnosis
    from lrsa_lightning.diagnosis.table import table

    diagnosis = Diagnosis(options)
    texts = track(diagnosis.texts, "texts", disable=not sys.stdout.isatty())
    findings = diagnosis.measure(texts)
    files = diagnosis.write(findings, Path(options.output))
    Console().print(table(findings))
    print("wrote:", *files, sep="\n  ")
