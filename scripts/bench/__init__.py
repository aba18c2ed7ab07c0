"""What the benches of training steps share. The modules here are no commands."""

from pathlib import Path

import lrsa_lightning

# An installed package holds callbacks/ and configs/. The source tree holds them beside it, installed or not.
_package = Path(lrsa_lightning.__file__).parent
if not (_package / "callbacks").exists():
    lrsa_lightning.__path__.append(str(_package.parent))
