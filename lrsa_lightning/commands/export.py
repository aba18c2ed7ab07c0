"""`lrsa export`: a Hugging Face folder of a run's checkpoint."""

from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import PositiveUnitInterval

_DESCRIPTION = """Makes a Hugging Face folder of a run's last checkpoint, or of a given checkpoint.

A checkpoint is a file, or a folder of ZeRO's ranks. The Hugging Face folder has safetensors, config.json, the tokenizer
and the generation configuration, a model card and custom_generate/. config.json names the run's rule under "lrsa".
`lrsa generate`, `lrsa chat` and `lrsa lm_eval` follow it, and so does transformers after `import lrsa_lightning`, or
with custom_generate=FOLDER, and vLLM with lrsa-lightning installed. Engines that do not know it refuse the folder.
Examples: lrsa export runs/NAME --output exported
          lrsa export runs/NAME/checkpoints/best.ckpt --output exported --dtype bfloat16
          lrsa export ADAPTER_FOLDER --output merged
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa export")
    given = "runs/NAME, a checkpoint of it, or an adapter folder"
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help=given)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights; default: the checkpoint's own"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="of a run with model.lora: the adapter alone, as a folder for peft"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export in --output; nothing else is deleted"
    )
    parser.add_argument(
        "--serving_ratio",
        type=PositiveUnitInterval,
        help="of an elastic run: which of its ratios config.json names; default: the serving_ratio of the run",
    )
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Exports, and prints the checkpoint and the folder."""
    options = make_parser().parse_args(args)
    import torch

    from lrsa_lightning.model_folder.export import export

    dtype = getattr(torch, options.dtype) if options.dtype else None
    flags = {"adapter": options.adapter, "overwrite": options.overwrite, "serving_ratio": options.serving_ratio}
    checkpoint = export(options.source, options.output, dtype, **flags)
    print(f"{checkpoint} -> {options.output}")
