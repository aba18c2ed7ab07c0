"""The code in an exported folder: generation on the compressed cache, for people who have transformers alone."""

from importlib.resources import files
from pathlib import Path

from lrsa_lightning.attention import LRSA, AttentionMode


def write_custom_generate(folder: Path, mode: AttentionMode | None) -> None:
    """Copies ``custom_generate/`` into a model's folder, if its mode is an `LRSA`; others need no code.

    `model.generate(custom_generate=FOLDER, trust_remote_code=True)` runs it.
    """
    if type(mode) is not LRSA:
        return
    target = folder / "custom_generate"
    target.mkdir()
    for source in (files(__package__) / "custom_generate").iterdir():
        if source.is_file():
            (target / source.name).write_bytes(source.read_bytes())
