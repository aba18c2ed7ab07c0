"""Random numbers of NPUs: seeded, isolated, repeated."""

import lightning
import pytest
import torch

from lrsa_lightning import Vanilla
from lrsa_lightning.ruler.evaluator import _untouched
from tests.conftest import make_model
from tests.npu.test_trainer import QUIET, Regression

pytestmark = pytest.mark.npu


class Draws(Regression):
    def __init__(self):
        super().__init__()
        self.drawn: list[float] = []

    def training_step(self, batch, batch_idx):
        self.drawn.append(torch.rand((), device=self.device).item())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        torch.rand(3, device=self.device)

    val_dataloader = Regression.train_dataloader


def test_a_sanity_check_leaves_the_numbers_of_training_alone():
    drawn = []
    for sanity_steps in (0, 2):
        lightning.seed_everything(1, verbose=False)
        module = Draws()
        options = {"max_steps": 4, "limit_val_batches": 2, "num_sanity_val_steps": sanity_steps, **QUIET}
        lightning.Trainer(accelerator="npu", strategy="npu_single", devices=1, **options).fit(module)
        drawn.append(module.drawn)
    assert len(set(drawn[0])) == 4
    assert drawn[1] == drawn[0]


def test_an_evaluation_leaves_the_numbers_of_training_alone():
    model = make_model().to("npu")
    torch.manual_seed(3)
    expected = torch.rand(5, device="npu")
    torch.manual_seed(3)
    with _untouched(model):
        torch.rand(5, device="npu")
    assert torch.equal(torch.rand(5, device="npu"), expected)


def test_a_seed_is_of_all_devices():
    drawn = []
    for _ in range(2):
        lightning.seed_everything(7, verbose=False)
        drawn.append([torch.rand(3, device=f"npu:{n}").tolist() for n in range(2)])
    assert drawn[0] == drawn[1]


def test_recomputed_layers_drop_the_same_numbers():
    """Dropout in a layer that gradient checkpointing runs twice."""
    ids = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(0)).to("npu")
    gradients = []
    for recomputed in (False, True):
        model = make_model(attention_dropout=0.5).to("npu").train()
        Vanilla("eager").install(model)
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.cpu() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
