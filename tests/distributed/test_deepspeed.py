"""ZeRO over real processes: the same losses, norms and first weights as one plain process."""

import json
import subprocess
import sys

import pytest

from tests.conftest import make_model
from tests.distributed.zero import callback, curve, launched, lrsa, zero
from tests.runs import command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_and_norms_are_those_of_one_process(run_of_stage, stage):
    """Gradients are clipped at a norm of 1: a wrong scale would change the losses too."""
    one, two = run_of_stage(0), run_of_stage(stage)
    assert list(curve(two)) == [*range(1, 8)]
    assert curve(two) == pytest.approx(curve(one), abs=5e-6)
    assert curve(two, "train/grad_norm") == pytest.approx(curve(one, "train/grad_norm"), rel=1e-5)
    assert min(curve(one, "train/grad_norm").values()) > 1


def test_a_pretrained_model_is_read_by_one_rank_alone(zero_arguments, tokenizer, tmp_path):
    """Under ZeRO-3, with the head tied to the embedding and started as users do; the losses stay the same."""
    make_model(vocab_size=len(tokenizer), tie_word_embeddings=True).save_pretrained(tmp_path / "pretrained")
    options = {**zero_arguments, "trainer.max_steps": "2", "model.name_or_path": str(tmp_path / "pretrained")}
    del options["model.from_config"]
    callbacks = json.dumps([callback("OneReader")])
    options |= {"runs_dir": str(tmp_path)}
    lrsa(*command({**options, "run_name": "plain", "trainer.devices": "1"}))
    launched(*command({**options, "run_name": "zero", "trainer.strategy": zero(3), "trainer.callbacks": callbacks}))
    for metric, tolerance in (("train/loss", 1e-6), ("train/grad_norm", 1e-5)):
        assert curve(tmp_path / "zero", metric) == pytest.approx(curve(tmp_path / "plain", metric), rel=tolerance)


def test_offloaded_states_and_parameters_change_nothing(zero_arguments, run_of_stage, tmp_path):
    """torch's AdamW replaces DeepSpeed's, which takes minutes to compile."""
    callbacks = json.dumps([callback("UncompiledAdam")])
    strategy = zero(3, offload_optimizer=True, offload_parameters=True)
    options = {"trainer.strategy": strategy, "trainer.callbacks": callbacks}
    lrsa(*command({**zero_arguments, "runs_dir": str(tmp_path), "run_name": "offload", **options}))
    assert curve(tmp_path / "offload") == pytest.approx(curve(run_of_stage(0)), abs=5e-6)


def test_without_deepspeed_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from lightning.pytorch.strategies import deepspeed; deepspeed._DEEPSPEED_AVAILABLE = False\n"
        "from lrsa_lightning.distributed import SPDeepSpeedStrategy, deepspeed as ours\n"
        "ours._DEEPSPEED_AVAILABLE = False\n"
        "SPDeepSpeedStrategy()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "needs DeepSpeed: pip install 'lrsa-lightning[deepspeed]'" in result.stderr.splitlines()[-1]


def test_the_command_knows_the_strategy_without_importing_deepspeed():
    code = (
        "import sys, lrsa_lightning.commands.training\n"
        "from lightning.pytorch.strategies import StrategyRegistry\n"
        "assert 'sp_deepspeed' in StrategyRegistry.available_strategies() and 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
