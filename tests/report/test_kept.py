"""What `lrsa report --keep` keeps: the same report again, and no text."""

import json
import shutil
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.records import read_records
from tests.report.conftest import records


@pytest.fixture
def runs(make_run, tmp_path, monkeypatch) -> list[str]:
    """Two seeds and a base model with texts, and an evaluation folder."""
    monkeypatch.chdir(tmp_path)
    for name, seed, score in (("v0", 0, 0.0), ("v1", 1, 1.0)):
        texts = {"prediction": "the secret passage", "digest": "d", "kv_bytes": 2**20, "hits": [True]}
        own = [*records({"vt": [score, 1.0]}, **texts), *records({"vt": [score, 0.0]}, budget="r0.5", **texts)]
        callback = {"class_path": "a.RulerEval", "init_args": {"lag_divisor": 16}}
        trainer = {"max_steps": 3, "callbacks": [callback], "default_root_dir": f"{tmp_path}/runs"}
        data = {"seed": seed, "train_files": [f"{tmp_path}/data/train.jsonl"]}
        config = {"seed_everything": seed, "model": {"lr": 1.0}, "data": data, "trainer": trainer}
        folder = make_run(name, {3: own}, [2.0, 1.0], config)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(
                json.dumps({"step": 1, "train/tokens": 9.0, "throughput/seconds/compute": 2.0, "other": 1.0}) + "\n"
            )
    make_run("eval", records({"vt": [0.0, 1.0]}, prediction="the secret passage", kv_bytes=2**20))
    return ["v0", "v1", "eval"]


def test_the_report_of_what_was_kept_is_the_same(runs, tmp_path, capsys):
    main(["report", *runs, "--output", "out", "--baseline", "v0", "--keep", "kept"])
    for name in runs:
        shutil.rmtree(name)
    printed = capsys.readouterr().out
    main(["report", *(f"kept/{name}" for name in runs), "--output", "again", "--baseline", "v0"])
    tables = [path.name for path in Path("out").iterdir() if path.suffix in (".md", ".csv", ".png")]
    assert {"table1.md", "table_arms.csv", "table_tasks.csv", "fig2_loss.png", "fig5_bytes.png"} <= {*tables}
    assert all(Path("out", name).read_bytes() == Path("again", name).read_bytes() for name in tables)
    notes = [
        [line for line in text.splitlines() if line.startswith("note:")] for text in (printed, capsys.readouterr().out)
    ]
    assert notes[0] == notes[1] != []


def test_no_text_and_no_place_of_this_machine_is_kept(runs, tmp_path):
    main(["report", *runs, "--output", "out", "--keep", "kept"])
    for record in (
        *read_records(Path("kept/v0/ruler/step-000003.jsonl.xz")),
        *read_records(Path("kept/eval/results.jsonl.xz")),
    ):
        assert record.prediction is None
        assert "x" not in record.outputs
    plain = "".join(path.read_text() for path in Path("kept").rglob("*") if path.suffix in (".yaml", ".jsonl", ".json"))
    assert str(tmp_path) not in plain
    assert "data/train.jsonl" in plain
    assert "other" not in plain


def test_a_broken_kept_file_is_named(runs):
    main(["report", *runs, "--output", "out", "--keep", "kept"])
    path = Path("kept/eval/results.jsonl.xz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"results\.jsonl\.xz cannot be read"):
        read_records(path)
