"""A run that is out of a GPU's memory; NPUs in tests/npu/test_memory.py."""

from types import SimpleNamespace

import torch

from lrsa_lightning.callbacks import OutOfMemoryAdvice

GIB = 2**30


def test_the_advice_names_what_was_in_use_and_what_the_run_does_not_do_yet(monkeypatch, caplog):
    figures = {"mem_get_info": (0, 80 * GIB), "max_memory_allocated": 71 * GIB, "max_memory_reserved": 79 * GIB}
    memory = SimpleNamespace(**{name: lambda device, value=value: value for name, value in figures.items()})
    monkeypatch.setattr(torch, "get_device_module", lambda device: memory)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda:1")),
        lightning_module=SimpleNamespace(recompute="selective"),
        datamodule=SimpleNamespace(micro_batch_size=4),
    )
    OutOfMemoryAdvice().on_exception(trainer, None, torch.OutOfMemoryError())
    assert caplog.messages == [
        "cuda:1 is out of memory: 80.0 GiB, 71.0 at the peak, 79.0 reserved. To lower it: "
        "PYTORCH_ALLOC_CONF=expandable_segments:True; model.recompute: full; "
        "data.micro_batch_size: 1 instead of 4; more devices that share each sequence, as in "
        "configs/trainer/zero2_sp2.yaml and zero3_sp4.yaml"
    ]


def test_other_errors_and_the_cpu_get_none(caplog):
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    OutOfMemoryAdvice().on_exception(trainer, None, torch.OutOfMemoryError())
    trainer.strategy.root_device = torch.device("cuda:0")
    OutOfMemoryAdvice().on_exception(trainer, None, ValueError("out of memory"))
    assert caplog.messages == []
