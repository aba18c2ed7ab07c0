"""What a run was trained on: a resume goes on with the same samples, or is refused."""

from pathlib import Path
from typing import TypedDict

from lrsa_lightning.errors import InputError


class TrainedContent(TypedDict):
    """Held in checkpoints, in plain types: they are loaded with `weights_only`.

    Attributes:
        train_files: name and hash of each file; for a hub data set, its name twice.
        samples: hash of the tokens of all prepared samples, in order.
        template: for what the model is asked.
    """

    train_files: list[list[str]]
    samples: str
    template: str


def check_files(saved: TrainedContent, train_files: list[list[str]]) -> None:
    """
    Raises:
        InputError: the content of a file has changed.
    """
    if saved["train_files"] == train_files:
        return
    changed = [name for name, content in train_files if [name, content] not in saved["train_files"]]
    raise InputError(
        f"data.train_files: {', '.join(changed) or 'their number or order'} changed since the checkpoint was written, "
        "and the run would go on with other samples: give the files as they were, or --allow_mismatch true"
    )


def check_samples(saved: TrainedContent, samples: str, folder: Path) -> None:
    """
    Raises:
        InputError: the prepared samples are not those of the run.
    """
    if saved["samples"] != samples:
        raise InputError(
            f"the prepared samples in {folder} are not those that the checkpoint was trained on: the tokenizer, a hub "
            "data set or a library has changed. Resume with the earlier ones, or give --allow_mismatch true"
        )
