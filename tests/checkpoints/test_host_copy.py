"""Copies of a state in host memory. Tensors of the CPU stand for a device's where a test says so."""

import io
import math

import pytest
import torch

from lrsa_lightning.checkpoints import host_copy
from lrsa_lightning.checkpoints.host_copy import HostCopies, available_memory


@pytest.fixture
def as_device(monkeypatch):
    """The CPU counts as a device. Its memory cannot be pinned here, which only makes copies slower."""
    monkeypatch.setattr(host_copy, "_HOST", "none")
    monkeypatch.setattr(host_copy, "_BLOCK", 2**12)


def state() -> dict:
    weight = torch.arange(60.0).reshape(6, 10)
    moments = {"exp_avg": torch.ones(2000), "step": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    trained = torch.nn.Parameter(torch.ones(4))[:2]  # has a gradient function, as a part of ZeRO's flat weights has
    others = {"optimizer": [moments], "epoch": (1, "a"), "meta": torch.zeros(3, device="meta"), "trained": trained}
    return {"head": weight, "embedding": weight, "column": weight[:, 1], **others}


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.is_meta or torch.equal(first, second)
    return first == second


def check(copies: HostCopies) -> None:
    original = state()
    before = saved(original)
    copy = copies.of(original)
    original["head"].zero_()
    original["optimizer"][0]["exp_avg"].zero_()
    original["optimizer"].append("later")
    assert same(copy, state())
    assert saved(copy) == before  # tied weights and views have one storage, of its own size


def test_a_copy_on_the_cpu_does_not_follow_its_state():
    check(HostCopies())


def test_a_copy_from_a_device_does_not_follow_its_state(as_device):
    """The second one is in the same memory; a larger state gets more."""
    copies = HostCopies()
    check(copies)
    size = copies._memory.size
    copies.release()
    check(copies)
    assert copies._memory.size == size
    copies.release()
    assert torch.equal(copies.of([torch.full((9000,), 7.0)])[0], torch.full((9000,), 7.0))
    assert copies._memory.size > size


def test_reserved_memory_is_used(as_device):
    copies = HostCopies()
    copies.reserve([torch.zeros(3000), 7, torch.nn.Parameter(torch.zeros(100))])
    copies.of({})
    size = copies._memory.size
    assert size >= 4 * 3100
    copies.of([torch.zeros(3000), torch.zeros(100)])
    assert copies._memory.size == size


def test_nothing_is_reserved_for_tensors_on_the_cpu():
    copies = HostCopies()
    copies.reserve([torch.zeros(3000)])
    assert copies._memory.size == 0


def test_what_devices_gathered_is_not_copied_again():
    large, small = torch.ones(2**20), torch.ones(3)
    copy = HostCopies(are_gathered=True).of({"large": large, "small": small})
    assert copy["large"] is large
    assert copy["small"] is not small


@pytest.mark.parametrize("processes", [1, 2])
def test_a_copy_needs_free_memory(monkeypatch, caplog, processes):
    """1.2 times its size, for each process of the host; tied weights count once."""
    copies, size = HostCopies(processes=processes), 4 * (60 + 2000 + 1 + 4)
    monkeypatch.setattr(host_copy, "available_memory", lambda: 1.2 * processes * size)
    assert copies.of(state()) is not None
    monkeypatch.setattr(host_copy, "available_memory", lambda: 1.2 * processes * size - 2)
    assert copies.of(state()) is None
    assert copies.of(state()) is None
    assert caplog.text.count("too small for a copy of the state") == 1


def test_memory_that_is_reserved_already_is_not_needed_again(as_device, monkeypatch):
    """Until another part of the same checkpoint uses it."""
    copies = HostCopies()
    copies.of(state())
    copies.release()
    monkeypatch.setattr(host_copy, "available_memory", lambda: 0)
    assert same(copies.of(state()), state())
    assert copies.of(state()) is None


def test_the_limit_of_a_container_counts(tmp_path):
    files = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 500\ninactive_file 150\n"}
    assert host_copy._free_in_group(tmp_path) == math.inf
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert host_copy._free_in_group(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert host_copy._free_in_group(tmp_path) == math.inf
    assert 0 < available_memory() < math.inf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_copies_from_a_gpu_are_in_pinned_memory():
    copies, weight = HostCopies(), torch.randn(2**20, device="cuda")
    copy = copies.of({"weight": weight})["weight"]
    assert copy.is_pinned()
    assert torch.equal(copy, weight.cpu())
