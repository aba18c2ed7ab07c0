"""Records made on the spot, and the folders that a report is made from."""

import json

import pytest
import yaml

from lrsa_lightning.ruler.records import Record, write_records


def records(scores, length=4096, budget="r1", seed=42, **fields):
    """Records of one length and budget from scores 0..1 by task."""
    return [
        Record(f"{task}-{length}-{seed}-{i}", task, length, budget, 0.97, ["x"], [], score=score, **fields)
        for task, values in scores.items()
        for i, score in enumerate(values)
    ]


@pytest.fixture
def make_run(tmp_path):
    """(name, records by step or records, losses, config) -> a run directory, or an evaluation folder without steps."""

    def make(name, checks=(), losses=(), config=None):
        folder = tmp_path / name
        folder.mkdir()
        if isinstance(checks, list):
            write_records(folder / "results.jsonl", checks)
        for step, own in checks.items() if isinstance(checks, dict) else ():
            write_records(folder / f"ruler/step-{step:06d}.jsonl", own)
        if losses:
            rows = [{"step": i, "train/loss": loss} for i, loss in enumerate(losses, 1)] + [{"step": 0, "ruler/x": 1.0}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if config is not None:
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return make
