"""Processes with different configurations end with an error before any of them reads data."""

from pathlib import Path

import pytest

from lrsa_lightning.run.rank_guard import name_ranks
from tests.processes import on_ranks


def test_many_ranks_are_counted():
    assert name_ranks([3]) == "rank 3"
    assert name_ranks(range(10)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


@pytest.mark.slow
def test_every_rank_names_what_differs_before_it_reads_data(arguments, in_tmp_path):
    """Files that do not exist would be the next error."""
    arguments |= {"data.train_files": "absent.jsonl", "data.cache_dir": "cache-0"}
    other = {**arguments, "model.lr": "2e-2", "trainer.max_steps": "7", "data.cache_dir": "cache-1"}
    ended = on_ranks(arguments, other, timeout=60)
    for process in ended:
        assert process.status == 2, process.err
        assert "model.lr: 0.01 (rank 0), 0.02 (rank 1)" in process.err
        assert "trainer.max_steps: 6 (rank 0), 7 (rank 1)" in process.err
        assert process.err.count("(rank 0)") == 2
        assert "Traceback" not in process.err
    assert not Path("cache-0").exists()
    assert not Path("runs").exists()
