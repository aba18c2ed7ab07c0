"""What a run's configuration says, and what differs between two of them."""

import pytest
import yaml

from lrsa_lightning.errors import InputError
from lrsa_lightning.run.config import RunConfig, describe, differing, newest_config


def test_the_newest_configuration_is_read(tmp_path):
    assert newest_config(tmp_path) is None
    assert RunConfig.of_directory(tmp_path).values == {}
    names = ["config.yaml", "config-2.yaml", "config-10.yaml", "config-11-copy.yaml", "config-12.diff", "configs.yaml"]
    for name in names:
        (tmp_path / name).write_text(yaml.safe_dump({"run_name": name}))
    assert RunConfig.of_directory(tmp_path).values == {"run_name": "config-10.yaml"}
    for name in names[1:3]:
        (tmp_path / name).unlink()
    assert RunConfig.of_directory(tmp_path).values == {"run_name": "config.yaml"}
    (tmp_path / "config-1.yaml").write_text("- 1")
    with pytest.raises(InputError, match=r"config-1\.yaml"):
        RunConfig.of_directory(tmp_path)


def test_changes_name_each_key_with_both_values():
    before = RunConfig({"model": {"lr": 1.0, "from_config": {}}, "data": {"mixture": {"a.jsonl": 1, "b.jsonl": 2}}})
    after = RunConfig(
        {"model": {"lr": 2.0, "from_config": {"layers": 2}, "new": 3}, "data": {"mixture": {"a.jsonl": 1}}}
    )
    changes = before.changes(after, defaults={"model.new": 3})
    assert changes == {
        "model.lr": (1.0, 2.0),
        "data.mixture.b.jsonl": (2, None),
        "model.from_config.layers": (None, 2),
    }
    assert describe(changes).splitlines()[0] == "  model.lr: 1.0 -> 2.0"
    assert before.changes(before) == {}


def test_what_differs_between_several_configurations():
    configs = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "only": 4}]
    assert differing(configs) == {"b": [2, 3, 2], "only": [None, None, 4]}
    assert differing(configs[:1] * 3) == {}
    assert differing([]) == {}


def test_the_cache_of_a_node_is_not_compared_between_ranks():
    config = RunConfig({"data": {"cache_dir": "/local", "seq_len": 8}})
    assert config.of_all_ranks == {"data.seq_len": 8}
