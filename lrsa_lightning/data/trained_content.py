"""What a checkpoint says its run was trained on: a resume goes on with the same samples, or says that it does not."""

from pathlib import Path
from typing import TypedDict

from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy

from lrsa_lightning.checkpoint_files import TAG, read_index
from lrsa_lightning.errors import InputError


class TrainedContent(TypedDict):
    """In plain types, as checkpoints are loaded with `weights_only`.

    Attributes:
        train_files: name and hash of each file; a hub data set's name twice.
        samples: hash of the tokens of all prepared samples, in order.
    """

    train_files: list[list[str]]
    samples: str


def content_in(trainer: Trainer, name: str) -> TrainedContent | None:
    """What the checkpoint that a fit is about to resume from says; None where there is none, or it says nothing.

    Args:
        trainer: before it loads the checkpoint.
        name: of the datamodule's class, under which Lightning keeps its state.
    """
    if trainer.state.fn != "fit" or trainer.ckpt_path is None:
        return None
    path = Path(trainer.ckpt_path)
    if path.is_file():
        return (read_index(path) or {}).get(name)
    if isinstance(trainer.strategy, DeepSpeedStrategy) and any((path / TAG).glob("*_model_states.pt")):
        from lrsa_lightning.distributed.zero_files import read_client_state

        return read_client_state(path).get(name)
    return None


def check_files(saved: TrainedContent, train_files: list[list[str]]) -> None:
    """
    Raises:
        InputError: a file holds something else than it did.
    """
    if saved["train_files"] == train_files:
        return
    changed = [name for name, content in train_files if [name, content] not in saved["train_files"]]
    raise InputError(
        f"data.train_files: {', '.join(changed) or 'their number'} changed since the checkpoint was written, and the "
        "run would go on with other samples: give the files as they were, or --allow_mismatch true"
    )


def check_samples(saved: TrainedContent, samples: str, folder: Path) -> None:
    """
    Raises:
        InputError: the prepared samples are not those of the run.
    """
    if saved["samples"] != samples:
        raise InputError(
            f"the prepared samples in {folder} are not those that the checkpoint was trained on: the tokenizer, a hub "
            "data set or a library has changed. Resume with what there was, or give --allow_mismatch true"
        )
