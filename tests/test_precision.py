"""`bf16-master`: bfloat16 computes, float32 remembers."""

import math
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.plugins import DeepSpeedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.distributed import choice
from lrsa_lightning.precision import MasterPrecision, MasterWeights
from lrsa_lightning.trainer import RangedTrainer
from tests.runs import EACH_STEP, checkpoints, command, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")


class Tied(lightning.LightningModule):
    """Embedding and head are one weight; the layer between them notes the dtypes it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.inner, self.head = nn.Embedding(11, 16), nn.Linear(16, 16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight
        self.seen = set()

    def training_step(self, ids, batch_idx):
        self.seen |= {parameter.dtype for parameter in self.parameters()}
        logits = self.head(torch.utils.checkpoint.checkpoint(self.inner, self.embed(ids), use_reentrant=False))
        return nn.functional.cross_entropy(logits.flatten(0, -2).float(), ids.flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, batches, precision="bf16-master", **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = RangedTrainer(accelerator="cpu", devices=1, precision=precision, max_epochs=1, **quiet, **settings)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def test_the_step_computes_in_bfloat16_and_the_module_keeps_float32():
    module = Tied()
    fit(module, torch.randint(0, 11, (3, 2, 5)))
    assert module.seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert module.head.weight is module.embed.weight


def test_micro_batches_add_up_in_float32():
    """A large gradient first, then many that bfloat16 would round away beside it."""

    class Sum(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def training_step(self, scale, batch_idx):
            return (self.weight * scale.to(self.weight.dtype)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1.0)

    module, scales = Sum(), torch.tensor([1024.0] + [1.0] * 7)
    fit(module, scales, accumulate_grad_batches=8)
    assert -8 * module.weight.item() == scales.sum().item()
    assert scales.to(torch.bfloat16).cumsum(0)[-1].item() != scales.sum().item()


def test_an_update_smaller_than_bfloat16s_spacing_is_kept():
    """500 steps at a small learning rate: the loss follows float32's, where bf16-true hardly moves."""
    batches = torch.randint(0, 11, (500, 4, 9), generator=torch.Generator().manual_seed(1))

    def last_loss(precision: str) -> float:
        module, found = Tied(), []
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(parameter.bfloat16())
        module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), 2e-5, weight_decay=0)
        step = module.training_step
        module.training_step = lambda *args: found.append(step(*args)) or found[-1]
        fit(module, batches, precision)
        assert len(found) == 500
        return math.fsum(loss.item() for loss in found[-20:]) / 20

    exact, masters, lost = (last_loss(precision) for precision in ("32-true", "bf16-master", "bf16-true"))
    first = last_loss_at_start(batches)
    assert abs(masters - exact) < 0.1 * (first - exact)
    assert abs(lost - exact) > 0.5 * (first - exact)


def last_loss_at_start(batches) -> float:
    module = Tied()
    with torch.no_grad():
        return math.fsum(module.training_step(ids, 0).item() for ids in batches[-20:]) / 20


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_run_follows_float32_and_resumes_bit_for_bit(arguments, recompute):
    settings = {"trainer.callbacks": checkpoints(2), "model.recompute": recompute}
    for name, precision in (("exact", "32-true"), ("masters", "bf16-master"), ("x", "bf16-master")):
        main(command(arguments | settings | {"trainer.precision": precision, "run_name": name}))
    assert losses("masters") == losses("x")
    for step, loss in losses("exact").items():
        assert losses("x")[step] == pytest.approx(loss, rel=0.02)
    saved = torch.load("runs/x/checkpoints/step=2.ckpt", weights_only=True)
    assert {weight.dtype for weight in saved["state_dict"].values()} == {torch.float32}
    assert any((weight != weight.bfloat16().float()).any() for weight in saved["state_dict"].values())
    again = arguments | settings | {"trainer.precision": "bf16-master", "ckpt_path": "runs/x/checkpoints/step=2.ckpt"}
    main(command(again))
    assert losses("x") == losses("masters")


def test_a_run_goes_on_in_another_precision(arguments):
    settings = arguments | {"trainer.callbacks": EACH_STEP}
    main(command(settings | {"trainer.precision": "bf16-mixed", "trainer.max_steps": "2"}))
    main(command(settings | {"trainer.precision": "bf16-master", "ckpt_path": "last", "trainer.max_steps": "3"}))
    assert [*losses()] == [1, 2, 3]


def test_ddp_is_refused_with_the_way_out(arguments, capsys):
    several = {"trainer.precision": "bf16-master", "trainer.strategy": "sp_ddp"}
    assert "set trainer.strategy to sp_fsdp2 or sp_deepspeed" in refusal(capsys, command(arguments | several))


@pytest.mark.parametrize(("devices", "expected"), [(2, "sp_fsdp2"), (1, "auto"), ("auto", "auto")])
def test_several_processes_take_fsdp2_by_themselves(devices, expected):
    trainer = SimpleNamespace(strategy="auto", precision="bf16-master", accelerator="cpu", devices=devices, num_nodes=1)
    choice.resolve_auto(trainer)
    assert trainer.strategy == expected


def test_strategies_bring_their_own_masters():
    def plugin(strategy):
        return RangedTrainer(accelerator="cpu", devices=1, precision="bf16-master", strategy=strategy).precision_plugin

    assert type(plugin("auto")) is MasterWeights
    assert type(plugin("sp_fsdp2")) is MasterPrecision
    assert isinstance(plugin("sp_deepspeed"), DeepSpeedPrecision)
    assert plugin("sp_deepspeed").precision == "bf16-true"


def test_fsdp2_computes_in_bfloat16_over_float32_shards(arguments):
    settings = {"trainer.precision": "bf16-master", "trainer.strategy": "sp_fsdp2"}
    cli = LRSACLI(command(arguments | settings))
    main(command(arguments | {"run_name": "alone", "trainer.precision": "bf16-master"}))
    assert {parameter.dtype for parameter in cli.model.parameters()} == {torch.float32}
    for step, loss in losses("alone").items():
        assert losses("x")[step] == pytest.approx(loss, rel=0.01)
