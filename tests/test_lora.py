"""LoRA in `lrsa fit`: what is trained, stored and resumed."""

from pathlib import Path

import pytest
import torch

from lrsa_lightning.cli import main
from tests.lora_runs import lora_run, save_base
from tests.runs import EACH_STEP, command, losses

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def base(tmp_path, tokenizer) -> Path:
    return save_base(tmp_path / "base", tokenizer)


@pytest.fixture
def adapters(arguments, base) -> dict[str, str]:
    """The options of a run of four steps with a checkpoint of each."""
    return lora_run(arguments, base) | {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "4"}


def checkpoint(step: int, run: str = "x") -> dict:
    return torch.load(f"runs/{run}/checkpoints/step={step}.ckpt", weights_only=True)


def test_adapters_alone_are_trained_and_stored(adapters):
    main(command(adapters))
    state = checkpoint(4)["state_dict"]
    assert {name.split(".")[-3] for name in state} == {"lora_A", "lora_B"}
    assert len(state) == 2 * 2 * 7  # layers x (A, B) x linear layers
    assert all(weight.abs().max() > 0 for weight in state.values())
    assert len(checkpoint(4)["optimizer_states"][0]["state"]) == len(state)
    assert losses()[3] < losses()[0]
