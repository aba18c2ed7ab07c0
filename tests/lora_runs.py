"""A tiny pretrained base, and the options of runs that train adapters on it."""

from pathlib import Path

from tests.conftest import make_model

SETTINGS = {"model.lora.r": "4", "model.lora.alpha": "8"}


def save_base(folder: Path, tokenizer, **keys) -> Path:
    """A base with weights and a tokenizer."""
    make_model(vocab_size=len(tokenizer), **keys).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lora_run(arguments: dict[str, str], base: Path, **settings: str) -> dict[str, str]:
    """The options of a run with adapters in place of one with random weights.

    Args:
        arguments: of the run.
        base: its folder.
        **settings: of `model.lora`, besides r and alpha.
    """
    kept = {key: value for key, value in arguments.items() if key != "model.from_config"}
    given = {f"model.lora.{name}": value for name, value in settings.items()}
    return {**kept, "model.name_or_path": str(base), **SETTINGS, **given}
