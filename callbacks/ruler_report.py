"""The results of a RULER check: records in the run directory, metrics, a table and a picture in the loggers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger

from lrsa_lightning.callbacks.pictures import log_picture
from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.ruler.heat_map import draw_depths
from lrsa_lightning.ruler.records import CellName, Record, write_records
from lrsa_lightning.ruler.results import cell_scores, metrics, table
from lrsa_lightning.ruler.summary import check_summary, left_out


def report_check(
    trainer: Trainer,
    effort: BestEffort,
    steps: int,
    records: Sequence[Record],
    wanted: Mapping[CellName, int],
    seconds: float | None,
) -> None:
    """Reports one check. All ranks must call it.

    Args:
        trainer: of the run.
        effort: of the files: a disk that fails does not stop training.
        steps: trained so far.
        records: of all ranks.
        wanted: samples of each cell, for which the time may not have sufficed.
        seconds: time of the check; None: no limit.
    """
    figures = metrics(cell_scores(records))
    # Callbacks such as ModelCheckpoint monitor them.
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
    if not trainer.is_global_zero:
        return
    path, picture = records_path(trainer, steps), None
    with effort.attempt():
        write_records(path, records)
        picture = draw_depths(records, path.with_name(f"{path.stem}-depths.png"), f"step {steps}")
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=steps)
        with effort.attempt():
            _log_records(logger, records, picture, steps)
    missing = left_out(Counter(record.cell for record in records), wanted, seconds)
    trainer.print(check_summary(steps, figures) + (missing and f"\n{missing}"))


def records_path(trainer: Trainer, step: int) -> Path:
    """The file of the records of a step's check."""
    return Path(trainer.default_root_dir) / "ruler" / f"step-{step:06d}.jsonl"


def _log_records(logger: Logger, records: Sequence[Record], picture: Path | None, step: int) -> None:
    """Logs a table and a picture where the logger can."""
    if hasattr(logger, "log_table"):
        columns, rows = table(records)
        logger.log_table("ruler_predictions", columns=columns, data=rows, step=step)
    if picture is not None:
        log_picture(logger, "ruler_depths", picture, step)
