"""docs/architectures.md: what LRSA does in every decoder of transformers, found by trying.

As a script it writes the page:

python -m tests.attention.architecture_page
"""

import logging
import re
import sys
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING

from lrsa_lightning import LRSA
from lrsa_lightning.attention.hybrid import kept_layers
from lrsa_lightning.errors import InputError
from tests.attention.architectures import MIXED, NAMES, PLAIN, WINDOW, build
from tests.attention.exactness import SIZES, refusal
from tests.decoders import DECODERS

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
COMMAND = "python -m tests.attention.architecture_page"
HEAD = """# Architectures

What LRSA does in each decoder of transformers {version}. A test makes this page: it builds a tiny model with random
weights, installs LRSA and compares. `{command}` rewrites the page.

- **exact**: at r = 1 the model is its eager self. At r = 1/2 it differs, and chunked prefill and decoding through the
  compressed cache equal the training forward.
- **exact, n of m layers**: a hybrid model. LRSA runs in the n layers of full attention. Each other layer keeps its own
  attention, mask and cache: a sliding window, chunks, linear attention, a convolution. Rows of unequal length are
  padded on the left. Packed rows run where the other layers attend; a state would run through all samples of a
  row. Sequence parallelism is refused.
- **refused**: `install`, `check`, `make_cache` and `lrsa fit` say so, with this reason, before they read any weight.
- **refused, not tried**: the test's tiny sizes do not fit this model. The reason is that of its default configuration.
- **not tried**: the same, and the default configuration is not refused. Each layer asks for plain causal attention, and
  reads what its own cache returns. No number was compared. Of a model for images or sound, the text decoder may have a
  line of its own.

LRSA looks at a model itself, not at a list of names: `attention/architecture.py` traces what each layer asks of the
attention function. The column "window in reach" is for texts longer than a model's window or chunk, where it has one.

Other tests train {names}: exact under sequence parallelism too, with LoRA, and after an export.

| `model_type` | short texts | window in reach |
|---|---|---|
"""


def outcome(name: str, **keys) -> str | None:
    """What LRSA does in a tiny model; None where the test cannot build it."""
    if (model := build(name, **keys)) is None:
        return None
    if reason := refusal(model):
        return f"refused: {_short(reason)}"
    config = model.get_decoder().config
    num_layers, kept = config.num_hidden_layers, kept_layers(config)
    return f"exact, {num_layers - len(kept)} of {num_layers} layers" if kept else "exact"


def row(name: str) -> str:
    if (plain := outcome(name, **PLAIN | MIXED) or outcome(name, **PLAIN)) is None:
        return f"| `{name}` | {_by_default(name)} | |\n"
    window = outcome(name, **PLAIN | WINDOW | MIXED) if _has_windows(name) else None
    return f"| `{name}` | {plain} | {'' if window in (None, plain) else window} |\n"


def _has_windows(name: str) -> bool:
    return not {"layer_types", *WINDOW}.isdisjoint(CONFIG_MAPPING[name]().to_dict())


def page() -> str:
    return head() + "".join(map(row, NAMES))


def head() -> str:
    names = ", ".join(f"`{name}`" for name in DECODERS)
    return HEAD.format(version=transformers.__version__, command=COMMAND, names=names)


def _by_default(name: str) -> str:
    try:
        LRSA(**SIZES).check(CONFIG_MAPPING[name]())
    except InputError as error:
        return f"refused, not tried: {_short(str(error))}"
    except Exception as error:
        return f"not tried: its default configuration cannot be read ({type(error).__name__})"
    return "not tried"


def _short(reason: str) -> str:
    """The reason without what is the same in all."""
    reason = re.sub(r"^LRSA replaces full causal attention, (and is not exact for '[^']*': |but )", "", reason)
    reason = re.sub(r"\.? (Otherwise use|Use) Vanilla with (it|this model)$", "", reason)
    reason = re.sub(r"(cannot be traced \(\w+): .*", r"\1)", reason)
    return reason.replace("|", "\\|")


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)  # the models are tiny
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {len(NAMES)} decoders\n")
