"""Speed, utilisation and the parts of a step, of real runs of the command."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy

from lrsa_lightning import LRSA, AttentionMode, Vanilla
from lrsa_lightning.callbacks import RulerEval, Throughput
from lrsa_lightning.callbacks.throughput import StepProfiler, _peak_flops, lengths_of
from lrsa_lightning.cli import main
from lrsa_lightning.data.dataset import LongContextDataset
from lrsa_lightning.errors import InputError
from lrsa_lightning.flops import DecoderFlops
from lrsa_lightning.module import LongContextModule
from lrsa_lightning.step_log import READING, StepLog, StepRow
from tests.conftest import TINY_MODEL
from tests.runs import callback, checkpoints, command, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
PARTS = ["data", "compute", "evaluation", "checkpoints", "other"]


def rows_of(arguments, *more, **options) -> list[dict]:
    arguments["trainer.callbacks"] = json.dumps([*more, callback("Throughput", **options)])
    main(command(arguments))
    return [row for row in metrics() if "train/loss" in row]


def test_figures_agree_with_each_other_and_with_the_losses_row(arguments, tokenizer):
    first, *rows = rows_of(arguments, window=1, peak_tflops=0.5)
    assert "throughput/tokens_per_second" not in first
    last = 0
    for before, row in zip([first, *rows], rows, strict=False):
        tokens, answers = (row[key] - before[key] for key in ("train/tokens", "train/answer_tokens"))
        seconds = tokens / row["throughput/tokens_per_second"]
        parts = [row[f"throughput/seconds/{part}"] for part in PARTS]
        assert sum(parts) == pytest.approx(seconds, rel=1e-3)
        sizes = SimpleNamespace(**TINY_MODEL, vocab_size=len(tokenizer))
        step = DecoderFlops.of(sizes).training({160: 4}, int(answers), LRSA(16, 0.5, 4))
        assert row["throughput/tflops_per_device"] == pytest.approx(step.real / seconds / 1e12, rel=1e-3)
        assert row["throughput/mfu"] == pytest.approx(step.real / seconds / 0.5e12, rel=1e-3)
        assert row["throughput/mfu_dense"] == pytest.approx(step.dense / seconds / 0.5e12, rel=1e-3)
        last = row["throughput/tokens_per_second_per_device"]
    assert last == rows[-1]["throughput/tokens_per_second"]


def test_the_window_averages_over_its_steps(arguments):
    rows = rows_of(arguments, window=3)
    seconds = [sum(row[f"throughput/seconds/{part}"] for part in PARTS) for row in rows]
    tokens = rows[-1]["train/tokens"] - rows[-4]["train/tokens"]
    assert rows[-1]["throughput/tokens_per_second"] == pytest.approx(tokens / sum(seconds[-3:]), rel=1e-3)
    assert "throughput/mfu" not in rows[-1]


def test_the_time_of_each_part_counts_for_that_part(arguments, train_file, monkeypatch):
    """Seconds that pass nowhere but where they are spent: a clock moved on by hand."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lrsa_lightning.callbacks.throughput.perf_counter", lambda: clock.now)

    def passing(owner, name, seconds):
        original = getattr(owner, name)

        def slow(*args, **kwargs):
            clock.now += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    passing(LongContextDataset, "__getitem__", 1)
    passing(LongContextModule, "training_step", 10)
    passing(LongContextModule, "validation_step", 100)
    passing(RulerEval, "_check", 1000)
    passing(Strategy, "save_checkpoint", 10000)
    arguments |= {"data.val_files": str(train_file), "data.micro_batch_size": "4"}
    arguments |= {"trainer.val_check_interval": "3", "trainer.limit_val_batches": "1"}
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], num_samples=1, every_n_steps=2)
    rows = rows_of(arguments, ruler, *json.loads(checkpoints(4)))
    assert [row["throughput/seconds/compute"] for row in rows] == [10] * 6
    assert [row["throughput/seconds/data"] for row in rows] == [1] * 6
    assert [row["throughput/seconds/evaluation"] // 100 for row in rows] == [0, 10, 0, 11, 0, 10]
    assert [row["throughput/seconds/checkpoints"] for row in rows] == [0, 0, 0, 0, 10000, 0]


def speed(seconds: dict[str, float], devices: int, shared_by: int, mode: AttentionMode) -> dict[str, float]:
    """What is logged at the last of three steps, the first of which was slow.

    Each is of one row on this device, which other devices may share, and of 300 tokens on all, 8 of them label tokens.
    """
    throughput = Throughput(peak_tflops=0.5)
    sharding = SimpleNamespace(seq_len=160, group=SimpleNamespace(size=shared_by)) if shared_by > 1 else None
    strategy = SimpleNamespace(root_device=torch.device("cpu"), sharding=sharding)
    trainer = SimpleNamespace(strategy=strategy, global_step=0, profiler=PassThroughProfiler(), world_size=devices)
    model = SimpleNamespace(config=SimpleNamespace(**TINY_MODEL, vocab_size=97))
    parts = {"starting_model": SimpleNamespace(has_adapters=False), "step_log": StepLog()}
    module = SimpleNamespace(model=model, step_attention=mode, seen_tokens=(0, 0), **parts)
    throughput.on_train_start(trainer, module)
    laps = iter([{"evaluation": 0.0, "compute": 1e6}, *[{"evaluation": 0.0, **seconds}] * 2])
    throughput._clock = SimpleNamespace(lap=lambda: next(laps), take_wait=lambda: 0.0)
    module.step_log.begin(SimpleNamespace(global_step=0, current_epoch=0))
    batch = {"input_ids": torch.zeros(1, 160 // shared_by)}
    for trainer.global_step in (1, 2, 3):
        throughput.on_train_batch_end(trainer, module, None, batch, 0)
    rows = [StepRow(n, {"train/tokens": 300.0 * n, "train/answer_tokens": 8.0 * n}) for n in (1, 2, 3)]
    throughput.on_steps_read(trainer, module, rows[:1])
    throughput.on_steps_read(trainer, module, rows[1:])
    return rows[-1].values


def test_the_speed_is_that_of_training_alone():
    """Three seconds of a step are training's; 97 of evaluation are not."""
    logged = speed({"compute": 2.0, "evaluation": 97.0, "other": 1.0}, 4, 1, Vanilla())
    assert logged["throughput/tokens_per_second"] == 100
    assert logged["throughput/tokens_per_second_per_device"] == 25
    assert logged["throughput/seconds/evaluation"] == 97


@pytest.mark.parametrize(("devices", "shared_by"), [(1, 1), (4, 1), (2, 2), (8, 4)])
def test_a_device_counts_the_operations_of_its_part_of_the_rows(devices, shared_by):
    """8 label tokens are those of all rows, which devices // shared_by groups of devices have one of each."""
    mode, config = LRSA(16, 0.5, 4), SimpleNamespace(**TINY_MODEL, vocab_size=97)
    of_row = DecoderFlops.of(config).training({160: 1}, 8 * shared_by // devices, mode)
    logged = speed({"compute": 3.0}, devices, shared_by, mode)
    assert logged["throughput/tflops_per_device"] == pytest.approx(of_row.real / shared_by / 3e12)
    assert logged["throughput/mfu"] == pytest.approx(of_row.real / shared_by / 1.5e12)
    assert logged["throughput/mfu_dense"] == pytest.approx(of_row.dense / shared_by / 1.5e12)
    assert of_row.dense > of_row.real


@pytest.mark.parametrize("arguments", [{"window": 0}, {"window": 2.5}, {"peak_tflops": 0.0}, {"peak_tflops": -1.0}])
def test_numbers_outside_their_range_are_refused(arguments):
    with pytest.raises(InputError, match=f"Throughput.{next(iter(arguments))} is"):
        Throughput(**arguments)


def test_packed_samples_are_sequences_of_their_own():
    rows = {"input_ids": torch.zeros(2, 8)}
    assert lengths_of({**rows, "cu_seqlens": [[0, 3, 8], [0, 8]]}) == [3, 5, 8]
    assert lengths_of(rows) == [8, 8]


def test_the_users_profiler_is_still_called():
    heard = []
    inner = SimpleNamespace(start=heard.append, stop=heard.append)
    clock = StepProfiler(inner, torch.device("cpu"))
    with clock.profile("run_training_batch"), clock.profile("anything"):
        pass
    assert heard == ["run_training_batch", "anything", "anything", "run_training_batch"]
    assert clock.lap()["compute"] > 0


def test_the_peak_is_of_the_device_and_the_precision(monkeypatch):
    """The H200's dense figure: Lightning's table lists its sparse one, under a name that no driver gives."""

    def peak(name: str, device: str = "cuda") -> float | None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        strategy = SimpleNamespace(root_device=torch.device(device))
        return _peak_flops(SimpleNamespace(strategy=strategy, precision_plugin=MixedPrecision("bf16-mixed", "cuda")))

    assert peak("NVIDIA H200") == 989.4e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("Unheard-of") is None
    assert peak("NVIDIA H200", "cpu") is None


@pytest.fixture
def on_a_device(monkeypatch):
    """A profiler of a device that works 5 s on what it has got, and a clock moved on by hand."""
    clock, waits = SimpleNamespace(now=0.0), []
    monkeypatch.setattr("lrsa_lightning.callbacks.throughput.perf_counter", lambda: clock.now)

    def wait(device) -> None:
        waits.append(device)
        clock.now += 5

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    return StepProfiler(PassThroughProfiler(), torch.device("cuda", 0)), clock, waits


def test_a_lap_does_not_wait_for_the_device_but_a_reading_does(on_a_device):
    stopwatch, clock, waits = on_a_device
    with stopwatch.profile("run_training_batch"):
        clock.now += 1  # the launches
    assert stopwatch.lap() == {"data": 0, "compute": 1, "evaluation": 0, "checkpoints": 0, "other": 0}
    with stopwatch.profile(READING):
        clock.now += 4
    clock.now += 2
    assert stopwatch.take_wait() == 4
    assert stopwatch.lap() == {"data": 0, "compute": 0, "evaluation": 0, "checkpoints": 0, "other": 2}
    assert waits == []


@pytest.mark.parametrize(("action", "part"), [("validation", "evaluation"), ("save_checkpoint", "checkpoints")])
def test_what_waits_for_the_device_is_not_charged_with_trainings_work(on_a_device, action, part):
    stopwatch, clock, waits = on_a_device
    with stopwatch.profile(action):
        clock.now += 3
    assert len(waits) == 1
    assert stopwatch.lap() == {"data": 0, "compute": 5, "evaluation": 0, "checkpoints": 0, "other": 0, part: 3}


def test_steps_that_are_read_together_share_the_time_of_computation(arguments, monkeypatch):
    """The fourth step launches for 30 s, the others not at all; the host waits 12 s at each reading."""
    monkeypatch.setattr("lrsa_lightning.step_log.EARLY_STEPS", (1,))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lrsa_lightning.callbacks.throughput.perf_counter", lambda: clock.now)
    step, read = LongContextModule.training_step, StepLog.read

    def slow(self, batch, batch_idx):
        clock.now += 15 if self.trainer.global_step == 3 else 0
        return step(self, batch, batch_idx)

    def waiting(self, before):
        clock.now += 12
        return read(self, before)

    monkeypatch.setattr(LongContextModule, "training_step", slow)
    monkeypatch.setattr(StepLog, "read", waiting)
    rows = rows_of({**arguments, "trainer.log_every_n_steps": "4"})
    assert [row["throughput/seconds/compute"] for row in rows] == [12, 14, 14, 14, 6, 6]
    assert all(row["throughput/seconds/other"] == 0 for row in rows)
