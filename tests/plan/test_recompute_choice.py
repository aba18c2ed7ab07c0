"""`recompute: auto`, with a device that is only counted."""

from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model

from lrsa_lightning import LRSA
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan import recompute_choice
from lrsa_lightning.plan.memory import activation_bytes
from lrsa_lightning.plan.recompute_choice import choose, of_first_step, policies
from lrsa_lightning.precision import MasterWeights
from lrsa_lightning.pretrained.starting_model import StartingModel
from tests.conftest import make_model


def trainer_of(device: str, precision: str = "bf16-master") -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device(device), reduce=lambda value, reduce_op: value)
    return SimpleNamespace(strategy=strategy, precision=precision, datamodule=SimpleNamespace(micro_batch_size=2))


def module_of(**settings) -> SimpleNamespace:
    sizes = {"starting_model": StartingModel(from_config={}), "optimizer": OptimizerSettings()}
    sizes |= {"seq_len": 512, "loss_chunk_size": 8, "recompute": "auto", "fused_layers": "auto"}
    return SimpleNamespace(**sizes | {"model": make_model(), "attention": LRSA(lag_size=64)} | settings)


def test_the_modules_own_policy_needs_no_memory_and_a_cpu_keeps_all():
    assert policies(module_of(recompute="full"), trainer_of("cuda")) == ["full"] * 2
    assert policies(module_of(), trainer_of("cpu")) == ["none"] * 2


def test_more_memory_keeps_more_and_never_more_than_there_is():
    module, trainer = module_of(), trainer_of("cuda")
    shape = recompute_choice._shape(module, trainer)
    assert (shape.rows, shape.tokens, shape.element, shape.residual) == (2, 512, 2, 2)
    room, kept = 2**21, []  # room for the loss and a layer's backward
    for policy in ("full", "attention", "selective", "none"):
        budget = 28 * activation_bytes(shape, policy) + room
        kept.append(sum(activation_bytes(shape, chosen) for chosen in choose(28, budget, module, trainer)))
        assert kept[-1] <= budget
    assert kept == sorted(kept)
    assert kept[-1] == 28 * activation_bytes(shape, "none")


def test_nothing_fits_into_nothing():
    assert choose(2, -1, module_of(), trainer_of("cuda")) == ["offload"] * 2


def test_what_the_first_step_adds_is_counted():
    """Four bytes of a gradient, eight of two moments, two of a bfloat16 copy."""
    model = torch.nn.Linear(10, 3, bias=False)
    plugin, optimizer = MasterWeights(), torch.optim.AdamW(model.parameters())
    plugin.connect(model, [optimizer], [])
    trainer = SimpleNamespace(optimizers=[optimizer], precision_plugin=plugin)
    assert of_first_step(trainer, OptimizerSettings()) == 30 * (4 + 8 + 2)
    with plugin.forward_context():
        model(torch.ones(1, 10, dtype=torch.bfloat16)).sum().backward()
    assert of_first_step(trainer, OptimizerSettings()) == 30 * 8
    optimizer.step()
    assert of_first_step(trainer, OptimizerSettings()) == 0


def test_adapters_and_quantised_states_are_counted():
    """States of 8 bits have one byte a number, and four for 256 of them."""
    plain, adapted = module_of(), module_of()
    get_peft_model(adapted.model, LoraConfig(r=4, target_modules="all-linear"))
    shapes = [recompute_choice._shape(module, trainer_of("cuda")) for module in (plain, adapted)]
    assert shapes[0].adapters is None
    assert shapes[1].adapters.rank == 7 * 4
    large = torch.nn.Linear(64, 64, bias=False)
    trainer = SimpleNamespace(optimizers=[torch.optim.SGD(large.parameters())], precision_plugin=None)
    assert of_first_step(trainer, OptimizerSettings("lion8bit")) == 4096 * 4 + 4096 + 4096 // 256 * 4


def test_other_programs_and_the_allocators_spare_memory_are_counted(monkeypatch):
    """Of 80 bytes others hold 20; of our 30 the allocator spares 10. Tensors may take 0.92 x 0.97 of 60."""
    figures = {"mem_get_info": (30_000, 80_000), "memory_reserved": 30_000, "memory_allocated": 20_000}
    memory = SimpleNamespace(**{name: lambda device, value=value: value for name, value in figures.items()})
    monkeypatch.setattr(torch, "get_device_module", lambda device: memory)
    assert recompute_choice._free(torch.device("cuda")) == int(0.92 * 0.97 * 60_000) - 20_000
