"""What the benches of training steps share. The modules here are no commands."""

from importlib.util import find_spec
from pathlib import Path

import lrsa_lightning

# An installed package holds callbacks/ and configs/. A tree that is not installed holds them beside the package.
if find_spec("lrsa_lightning.callbacks") is None:
    lrsa_lightning.__path__.append(str(Path(lrsa_lightning.__file__).parents[1]))
