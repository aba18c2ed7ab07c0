"""Bytes of the model's states against ZeRO's table and DeepSpeed's own estimators."""

import pytest
import torch

from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.model_size import ModelSize
from lrsa_lightning.plan.states import PRECISIONS, States, precision_of
from lrsa_lightning.pretrained.decoder import load_config, load_model
from tests.conftest import TINY_MODEL
from tests.plan.runs import run_of

P = run_of().size.total


def _model_bytes(precision: str, division: Division) -> float:
    """Bytes a parameter of weights, masters, gradients and optimizer states on one rank."""
    states = States.of(run_of().size, precision_of(precision, division), division)
    return (states.weights + states.masters + states.gradients + states.optimizer) / P


@pytest.mark.parametrize(
    ("precision", "a_parameter"), [("bf16-master", 18), ("bf16-mixed", 16), ("bf16-true", 8), ("32-true", 16)]
)
def test_one_device(precision, a_parameter):
    assert _model_bytes(precision, Division()) == a_parameter


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_zero_is_its_papers_table_with_gradients_in_float32(ranks):
    """arXiv 1910.02054: 4 + 12/n, 2 + 14/n and 16/n bytes with gradients of two bytes; stage 1 keeps those."""
    for stage, expected in ((1, 4 + 12 / ranks), (2, 2 + 16 / ranks), (3, 18 / ranks)):
        assert _model_bytes("bf16-master", Division("zero", ranks, stage)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("optimizer", "weights"), [(False, False), (True, False), (True, True)])
def test_zero3_is_what_deepspeeds_estimator_says(optimizer, weights):
    """It adds the largest layer, gathered, to what a rank holds."""
    estimators = pytest.importorskip("deepspeed.runtime.zero.stage3")
    size = run_of().size
    _, on_gpu, layer = estimators.estimate_zero3_model_states_mem_needs(
        size.total, size.layer, 8, 1, cpu_offload=optimizer, cpu_offload_params=weights
    )
    held = P * _model_bytes("bf16-master", Division("zero", 8, 3, optimizer, weights))
    assert held == pytest.approx(on_gpu - layer, rel=1e-6)


def test_fsdp2_divides_all_and_gathers_what_runs():
    division = Division("fsdp2", 4)
    assert _model_bytes("bf16-master", division) == pytest.approx(16 / 4, rel=1e-6)
    size = run_of().size
    gathered = States.of(size, PRECISIONS["bf16-master"], division).gathered
    assert gathered > 2 * (size.embedding + 2 * size.layer)
    assert gathered < 2 * P


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3"])
def test_parameters_are_those_of_the_built_model(model_type, is_tied):
    keys = TINY_MODEL | {"vocab_size": 101, "tie_word_embeddings": is_tied, "model_type": model_type}
    config = load_config(None, keys)
    model, size = load_model(config, None), ModelSize.of(config)
    assert size.total == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert size.layers * size.layer + size.outside_layers == size.total
    assert size.layer == sum(p.numel() for p in model.model.layers[0].parameters())
    assert size.is_tied == is_tied
    products = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert size.products == sum(p.numel() for p in products)
