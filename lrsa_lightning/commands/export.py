"""`lrsa export`: a Hugging Face folder of a run's checkpoint."""

from pathlib import Path

from lrsa_lightning.input_boundary import report_input_errors
from lrsa_lightning.script_parser import ScriptParser

_DESCRIPTION = """Makes a Hugging Face folder of a run's last checkpoint, or of a given checkpoint.

A checkpoint is a file, or a folder of ZeRO's ranks. The Hugging Face folder has safetensors, config.json, the tokenizer
and the generation configuration. transformers, vLLM and lm-eval can load it; they run full attention unless a mode is
installed. config.json names the run's rule under "lrsa", which `lrsa generate` and `lrsa chat` follow.
Examples: lrsa export runs/NAME --output exported
          lrsa export runs/NAME/checkpoints/best.ckpt --output exported --dtype bfloat16
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa export")
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="runs/NAME, or a checkpoint of it")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights; default: the checkpoint's own"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="of a run with model.lora: the adapter alone, as a folder for peft"
    )
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Exports, and prints the checkpoint and the folder."""
    options = make_parser().parse_args(args)
    import torch

    from lrsa_lightning.export import export

    dtype = getattr(torch, options.dtype) if options.dtype else None
    checkpoint = export(options.source, options.output, dtype, options.adapter)
    print(f"{checkpoint} -> {options.output}")
