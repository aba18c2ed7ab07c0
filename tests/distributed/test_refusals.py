"""Impossible settings of sequence parallelism are refused before anything is loaded; errors name the possible ones."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import StrategyRegistry

from lrsa_lightning import LRSA, AttentionMode, Vanilla
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.distributed import STRATEGIES, SequenceGroup, SequenceParallel
from lrsa_lightning.distributed.ulysses import legal_degrees
from lrsa_lightning.errors import InputError


def shard(mode: AttentionMode, size: int, kind: str = "auto", heads: int = 12, kv_heads: int = 2, seq_len: int = 32768):
    config = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=64 * heads
    )
    return SequenceParallel(size, kind).shard(mode, config, seq_len, SequenceGroup(0, size))


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [
        (LRSA(), 2, "context"),
        (LRSA(), 3, "context"),
        (Vanilla(), 2, "ulysses"),
        (Vanilla(), 6, "ulysses"),
        (Vanilla(), 3, "context"),
        (LRSA(lag_size=16384), 2, "ulysses"),
    ],
)
def test_auto_takes_context_for_lrsa_and_ulysses_for_others_and_logs_it(caplog, mode, size, kind):
    caplog.set_level(logging.INFO, logger="lrsa_lightning")
    assert shard(mode, size).kind == kind
    assert f"sequence parallelism over {size} ranks: {kind}" in caplog.text
    assert "MiB a layer" in caplog.text


def test_head_counts_name_the_legal_degrees():
    with pytest.raises(InputError, match="12 query and 2 KV heads can be divided among 1, 2, 4, 6, 12 ranks"):
        shard(Vanilla(), 8, "ulysses")


def test_chunk_counts_name_the_largest_degree():
    with pytest.raises(InputError, match=r"holds 3 complete chunks of lag_size 8192 .* at most 3 ranks"):
        shard(LRSA(lag_size=8192), 4, "context")


def test_auto_says_why_neither_is_possible():
    with pytest.raises(InputError, match=r"size 5 is not possible here. context: .*3 complete.* ulysses: .*heads"):
        shard(LRSA(lag_size=8192), 5)


def test_a_mode_without_a_chunked_rule_is_left_to_ulysses():
    class Outside(Vanilla):
        def context_rule(self, num_tokens: int, size: int) -> None:
            return None

    with pytest.raises(InputError, match="Outside does not say by which chunks"):
        shard(Outside(), 2, "context")
    assert shard(Outside(), 2).kind == "ulysses"


@pytest.mark.parametrize(("size", "world"), [(2, 3), (4, 2)])
def test_degrees_divide_the_processes(size, world):
    with pytest.raises(
        InputError, match=rf"size {size} does not divide the {world} processes .* one of \[1, {world}\]"
    ):
        SequenceParallel(size).check_world(world)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "legal"),
    [
        (14, 2, [1, 2, 14]),
        (12, 2, [1, 2, 4, 6, 12]),
        (16, 2, [1, 2, 4, 8, 16]),
        (28, 4, [1, 2, 4, 28]),
        (40, 8, [1, 2, 4, 8, 40]),
        (64, 8, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_legal_degrees_of_qwen2_5(heads, kv_heads, legal):
    assert legal_degrees(heads, kv_heads) == legal


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_are_chosen_by_name_and_by_class_path(arguments, in_tmp_path, name):
    assert name in StrategyRegistry
    options = {**arguments, "trainer.devices": "2"}
    by_name = LRSACLI([f"--{k}={v}" for k, v in {**options, "trainer.strategy": name}.items()], run=False)
    assert type(by_name.trainer.strategy) is STRATEGIES[name]
    chosen = {
        "class_path": f"lrsa_lightning.distributed.{STRATEGIES[name].__name__}",
        "init_args": {"sequence_parallel": {"size": 2, "kind": "ulysses"}},
    }
    options["trainer.strategy"] = json.dumps(chosen)
    by_path = LRSACLI([f"--{k}={v}" for k, v in options.items()], run=False)
    assert by_path.trainer.strategy.sequence_parallel == SequenceParallel(2, "ulysses")
    assert by_path.trainer.strategy.data_parallel_size == 1


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_python_accepts_a_mapping(strategy):
    chosen = strategy(sequence_parallel={"size": 2, "kind": "context"})
    assert chosen.sequence_parallel == SequenceParallel(2, "context")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"size": 2, "kind": "ring"},
            "SequenceParallel.kind is 'ring', but must be one of 'auto', 'ulysses', 'context'",
        ),
        ({"size": 0}, "SequenceParallel.size is 0, but must be a whole number of at least 1"),
        ({"degree": 2}, "sequence_parallel is {'degree': 2}, but must be a mapping of size, kind, zigzag"),
        (2, "sequence_parallel is 2, but must be a mapping"),
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_wrong_settings_of_sequence_parallelism_are_refused(strategy, given, said):
    with pytest.raises(InputError, match=re.escape(said)):
        strategy(sequence_parallel=given)


def of_class(name: str, **arguments) -> str:
    return json.dumps({"class_path": f"lrsa_lightning.distributed.{name}", "init_args": arguments})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sp_foo", "'sp_foo', but must be one of auto, ddp, sp_ddp, sp_deepspeed, sp_fsdp2"),
        ("deepspeed_stage_2", "Lightning's own: take sp_deepspeed, with its stage"),
        ('{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}', "Lightning's own: take sp_fsdp2"),
        ('{"class_path": "nowhere.Strategy"}', "No module named 'nowhere'"),
        (of_class("SPDeepSpeedStrategy", stage=0), "Expected a typing.Literal[1, 2, 3]. Got value: 0"),
        (of_class("SPDeepSpeedStrategy", stag=2), "Option 'stag' is not accepted"),
        (of_class("SPDDPStrategy", sequence_parallel={"size": 0}), 'Parser key "size"'),
        (of_class("SPDDPStrategy", sequence_parallel={"size": 2, "kind": "ring"}), "'context']. Got value: ring"),
        (of_class("SPDDPStrategy", sequence_parallel={"degree": 2}), "Option 'degree' is not accepted"),
    ],
)
def test_errors_say_what_is_wrong_with_a_strategy(arguments, in_tmp_path, given, said):
    """The parser alone would accept any text as a name."""
    with pytest.raises(InputError, match=re.escape(said)):
        LRSACLI([f"--{k}={v}" for k, v in {**arguments, "trainer.strategy": given}.items()], run=False)


def test_packed_rows_are_refused(arguments, in_tmp_path):
    chosen = {"class_path": "lrsa_lightning.distributed.SPDDPStrategy", "init_args": {"sequence_parallel": {"size": 2}}}
    options = {**arguments, "trainer.devices": "2", "trainer.strategy": json.dumps(chosen)}
    options |= {"data.packing": "true", "data.extend": "false"}
    cli = LRSACLI([f"--{k}={v}" for k, v in options.items()], run=False)
    cli.datamodule.trainer = cli.trainer
    with pytest.raises(InputError, match="sequence parallelism cannot split packed rows"):
        cli.datamodule.prepare_data()
