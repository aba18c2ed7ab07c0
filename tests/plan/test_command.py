"""`lrsa plan`: its options are those of `lrsa fit`, it loads nothing, and bad input is one line."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
import torch

from lrsa_lightning.cli import main
from lrsa_lightning.commands import plan as plan_command
from lrsa_lightning.commands.plan import PlanCLI
from lrsa_lightning.plan import at_start
from lrsa_lightning.plan.at_start import announce
from lrsa_lightning.plan.devices import H100, find_device
from tests.conftest import TINY_MODEL
from tests.plan.runs import KEYS_1_5B
from tests.refusals import cases, refused
from tests.runs import callback, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
PAPER = {
    "model.from_config": json.dumps(KEYS_1_5B),
    "model.attention": "LRSA",
    "data.train_files": "nowhere.jsonl",
    "device": "h100",
}


def _plan(capsys, **changed) -> dict:
    given = PAPER | {name.replace("__", "."): str(value) for name, value in changed.items()}
    main([*command(given, "plan"), "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_papers_run_is_planned_without_files_and_accelerator(capsys):
    plan = _plan(capsys, trainer__accelerator="cuda")
    assert plan["parameters"] == 1_543_714_304
    assert plan["device"] == "H100 80GB"
    assert plan["is_measured_device"]
    assert plan["seconds"]["tokens"] == 16 * 32768
    assert plan["peak_bytes"] == max(sum(parts.values()) for parts in plan["moments"].values())
    assert plan["fits"] == (plan["peak_bytes"] <= H100.usable)
    assert plan["sequence_parallel_degrees"]["ulysses"] == [1, 2, 4, 6, 12]
    assert plan["sequence_parallel_degrees"]["context"] == list(range(1, 17))
    caches = 8 * 2 * 28 * 2 * 128 * 32768 * 2
    assert plan["ruler_check"]["RULER caches"] == caches
    assert plan["ruler_check"]["RULER activations, or copied caches"] == caches


def test_the_table_is_plain_where_there_is_no_terminal(capsys):
    main(command(PAPER, "plan"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 x H100 80GB, one device: peak ")
    assert lines[0].endswith("(estimates)")
    assert not any("\x1b" in line or "─" in line for line in lines)
    rows = {line.split("  ")[0]: line.split()[-3:] for line in lines}
    assert rows["optimizer states"] == ["11.5", "11.5", "11.5"]
    assert any(line.startswith("one device, recompute full ") for line in lines)
    main(command(PAPER | {"device": "a100"}, "plan"))
    assert "data sheets" in capsys.readouterr().out


def test_options_of_a_fit_are_taken_and_change_the_plan(capsys):
    """Also those that a plan ignores, so that a command line can be given as it is."""
    before = _plan(capsys, trainer__precision="bf16-true")
    ignored = {"ckpt_path": "last", "run_name": "x", "trainer__callbacks": "[]"}
    after = _plan(capsys, trainer__precision="bf16-true", data__seq_len=8192, **ignored)
    assert after["peak_bytes"] < before["peak_bytes"]
    assert after["ruler_check"] == {}


def test_strategies_and_devices(capsys):
    strategy = {
        "class_path": "lrsa_lightning.distributed.SPModelParallelStrategy",
        "init_args": {"sequence_parallel": {"size": 4, "kind": "context"}},
    }
    plan = _plan(capsys, trainer__strategy=json.dumps(strategy), devices=8)
    assert plan["division"] == "FSDP2, 4 share a sequence (context)"
    assert plan["devices"] == 8
    assert _plan(capsys, trainer__devices=2, trainer__num_nodes=3, data__global_batch_size=6)["devices"] == 6
    assert _plan(capsys, trainer__devices="[0, 1]")["division"] == "DDP"
    zero = _plan(capsys, trainer__strategy="sp_deepspeed", devices=2)
    assert zero["division"] == "ZeRO-2"
    assert zero["fitting"][0]["seconds"]["step"] == min(option["seconds"]["step"] for option in zero["fitting"])


def test_what_fits_nowhere_names_a_way_out(capsys):
    large = KEYS_1_5B | {"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40}
    large |= {"num_key_value_heads": 8, "num_hidden_layers": 64, "tie_word_embeddings": False}
    plan = _plan(capsys, model__from_config=json.dumps(large))
    assert not plan["fits"]
    assert plan["fitting"] == []
    assert "x H100 80GB: " in plan["way_out"]


@cases(
    [
        ({"device": "tpu"}, "device", "h100"),
        ({"devices": "0"}, "devices"),
        ({"trainer.precision": "64-true"}, "the plan does not cover trainer.precision '64-true'", "bf16-mixed"),
        ({"trainer.strategy": "fsdp"}, "the plan does not cover trainer.strategy FSDPStrategy"),
        ({"trainer.strategy": "npu_single", "devices": "2"}, "SingleNPUStrategy is for one device, not 2"),
        ({"trainer.strategy": "sp_dpp"}, "must be one of", "sp_ddp"),
        ({"devices": "3"}, "data.global_batch_size 16 is not a multiple of 3"),
        ({"data.seq_len": "200000"}, "beyond the model's 131072 positions"),
        ({"model.from_config": json.dumps({"model_type": "gpt2"})}, "the plan does not cover 'gpt2'"),
        ({"model.attention": "Vanilla", "model.attention.implementation": "eager"}, "the plan does not cover Vanilla"),
        ({"model.zzz": "1"}, "model.zzz", "`lrsa plan --help`"),
    ]
)
def test_bad_input_is_one_line(capsys, wrong, said):
    refused(capsys, lambda: main(command(PAPER | wrong, "plan")), *said)


def test_an_impossible_degree_names_the_possible_ones(capsys):
    strategy = {
        "class_path": "lrsa_lightning.distributed.SPDDPStrategy",
        "init_args": {"sequence_parallel": {"size": 8, "kind": "ulysses"}},
    }
    wrong = PAPER | {"trainer.strategy": json.dumps(strategy), "devices": "8"}
    refused(capsys, lambda: main(command(wrong, "plan")), "1, 2, 4, 6, 12 ranks, not 8")


def test_without_an_accelerator_the_device_must_be_named(capsys):
    without = {key: value for key, value in PAPER.items() if key != "device"}
    refused(capsys, lambda: main(command(without, "plan")), "no accelerator here", "--device", "h100, h200")


def _trainer(device: str) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, is_global_zero=True, world_size=1)


def _given(**changed) -> tuple:
    cli = PlanCLI(command(PAPER | changed, "plan")[1:], run=False)
    return cli.config, cli.model


def _said(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == at_start.__name__]


def test_a_fit_has_no_plan_on_cpus_and_one_line_elsewhere(monkeypatch, caplog):
    caplog.set_level(logging.INFO, at_start.__name__)
    assert announce(*_given(), _trainer("cpu")) is None
    monkeypatch.setattr(at_start, "device_at_hand", lambda device: H100)
    plan = announce(*_given(**{"model.gradient_checkpointing": "true"}), _trainer("cuda"))
    assert plan.startswith("1 x H100 80GB, one device: peak ")
    assert _said(caplog) == []


def test_a_fit_is_warned_when_it_will_not_fit(monkeypatch, caplog):
    monkeypatch.setattr(at_start, "device_at_hand", lambda device: H100)
    given = _given(**{"data.micro_batch_size": "8", "model.gradient_checkpointing": "false"})
    assert "does NOT fit" in announce(*given, _trainer("cuda"))
    (record,) = _said(caplog)
    assert record.levelno == logging.WARNING
    assert "`lrsa plan`" in record.message


def test_a_device_without_known_rates_has_its_memory_planned_and_no_times(monkeypatch, capsys):
    device = find_device("NVIDIA GeForce RTX 4090", 24 * 2**30)
    monkeypatch.setattr(at_start, "device_at_hand", lambda _: device)
    assert "peak " in (plan := announce(*_given(), _trainer("cuda")))
    assert plan.startswith("1 x NVIDIA GeForce RTX 4090, one device: ")
    assert plan.endswith("no times, since the rates of this device are unknown")
    monkeypatch.setattr(plan_command, "_device", lambda _: device)
    fits = {"trainer__max_steps": 10, "data__seq_len": 512, "model__attention__lag_size": 64}
    fits |= {"model__from_config": json.dumps(TINY_MODEL)}
    assert _plan(capsys, **fits)["seconds"] is None
    given = PAPER | {name.replace("__", "."): str(value) for name, value in fits.items()}
    main(command(given, "plan"))
    printed = capsys.readouterr().out
    assert "what fits, in the order of an A100's times" in printed
    assert not re.search(r"\d (ms|s|min|h)\b|tokens/s", printed)


def test_a_plan_that_fails_ends_no_run(monkeypatch):
    monkeypatch.setattr(at_start, "device_at_hand", lambda device: H100)
    keys = json.dumps({"model_type": "gpt2"})
    plan = announce(*_given(**{"model.from_config": keys, "model.attention": "Vanilla"}), _trainer("cuda"))
    assert "the plan does not cover 'gpt2'" in plan
    monkeypatch.setattr(at_start, "predict", lambda *_: 1 / 0)
    assert announce(*_given(), _trainer("cuda")).startswith("none, because of ZeroDivisionError")


def test_callbacks_of_a_plan_are_read_and_not_made(capsys):
    """RulerEval would read files that do not exist."""
    ruler = callback("RulerEval", tasks=["niah_single_2"], lengths=[4096], num_samples=2, budgets=[1.0, 0.5])
    plan = _plan(capsys, trainer__callbacks=json.dumps([ruler]), trainer__precision="bf16-true")
    checked = plan["ruler_check"]
    assert checked["RULER caches"] == 2 * 2 * 28 * 2 * 128 * 4096 * 2
    assert checked["RULER activations, or copied caches"] == 2 * 4096 * 2 * (3 * 8960 + 6 * 1536)  # the larger ones


def test_the_time_of_ruler_checks_is_limited_as_in_the_run(capsys):
    def seconds(**options) -> tuple[float, float]:
        """Of a check that generates, and of all checks of a run of 1000 steps: the first, one between, the last."""
        ruler = callback("RulerEval", lengths=[32768], every_n_steps=500, **options)
        times = _plan(capsys, trainer__callbacks=json.dumps([ruler]), trainer__max_steps=1000)["seconds"]
        return times["ruler"], times["run"] - 1000 * times["step"]

    needed, all_checks = seconds(max_seconds=None)
    assert 2 * needed < all_checks < 3 * needed  # in between it only rates
    assert seconds(max_seconds=5.0) == (5.0, pytest.approx(15.0))
    automatic, all_automatic = seconds()
    assert automatic == needed  # a tenth of 500 steps is more
    assert all_automatic == pytest.approx(all_checks - needed + 35)
    tiny = _plan(capsys, model__from_config=json.dumps(TINY_MODEL), data__seq_len=160)
    assert tiny["peak_bytes"] < 2**30
