"""What a report is made of, in small files without the texts of samples and answers."""

import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.metrics import METRICS, Row, read_rows
from lrsa_lightning.report.runs import RESULTS, SECONDS, SETTINGS, Run
from lrsa_lightning.ruler.records import without_texts

_SECTIONS = ("seed_everything", "model", "data")
_LIMITS = ("max_steps", "max_epochs")
_METRICS = ("train/loss", "train/tokens", "val/loss", SECONDS)


def keep(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes a folder for each run, from which `lrsa report` makes the same tables and figures; returns the folders.

    Expected strings are hashed, predictions are left out. Paths below the working directory become relative.
    """
    for run in runs:
        own = folder / run.file_stem
        if run.config.values:
            text = yaml.safe_dump(_of_config(run.config.values), sort_keys=False)
            write_text(own / "config.yaml", text.replace(f"{Path.cwd()}/", ""))
        if (run.path / METRICS).exists():
            rows = filter(None, map(_of_row, read_rows(run.path / METRICS)))
            write_text(own / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        if run.settings:
            write_text(own / SETTINGS, json.dumps(run.settings, indent=1))
        if run.records:
            name = RESULTS if run.step is None else f"ruler/step-{run.step:06d}.jsonl"
            _write_records(own / f"{name}.xz", run)
    return [folder / run.file_stem for run in runs]


def _of_config(values: Mapping[str, Any]) -> dict[str, Any]:
    trainer = values.get("trainer") or {}
    callbacks = [own for own in trainer.get("callbacks") or [] if str(own.get("class_path")).endswith("RulerEval")]
    kept = {key: trainer[key] for key in _LIMITS if key in trainer} | {"callbacks": callbacks}
    return {key: values[key] for key in _SECTIONS if key in values} | {"trainer": kept}


def _of_row(row: Row) -> Row | None:
    kept = {key: value for key, value in row.items() if key.startswith(_METRICS)}
    return {"step": row["step"], **kept} if kept else None


def _write_records(path: Path, run: Run) -> None:
    content = "".join(without_texts(record).line() for record in run.records).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(content))  # half of what gzip leaves: a sample stands under each budget
