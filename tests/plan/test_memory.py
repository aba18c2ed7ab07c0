"""Predicted activations against what autograd saves, and chosen policies against all mixtures there are."""

from itertools import accumulate, combinations_with_replacement

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.plan.devices import H100, Work
from lrsa_lightning.plan.layer_shape import LayerShape
from lrsa_lightning.plan.memory import (
    POLICIES,
    activation_bytes,
    choose_policies,
    forward_work,
    recomputed_work,
    working_bytes,
)
from tests.conftest import make_model

ROWS, TOKENS = 2, 512
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
KEPT = {"none": 10, "full": 4, "offload": 0}
COST = {"none": 0.0, "full": 3.0, "offload": 5.0}


def _saved_bytes(model) -> int:
    """Of the tensors that autograd keeps for a backward of the decoder, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    tokens, positions = torch.zeros(ROWS, TOKENS, dtype=torch.int64), torch.arange(TOKENS).expand(ROWS, -1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_decoder()(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def _saved_by_a_layer(mode, policy: str, dtype: torch.dtype) -> float:
    saved = []
    for layers in (1, 3):
        model = make_model(num_hidden_layers=layers, head_dim=32, **SIZES).to(dtype).train()
        mode.install(model)
        if policy == "full":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        saved.append(_saved_bytes(model))
    return (saved[1] - saved[0]) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", ["none", "full"])
@pytest.mark.parametrize("mode", [Vanilla("sdpa"), LRSA(lag_size=32, sink_size=4)], ids=["vanilla", "lrsa"])
def test_autograd_keeps_what_is_predicted(mode, policy, dtype):
    config = make_model(num_hidden_layers=1, head_dim=32, **SIZES).config
    shape = LayerShape.of(config, mode, ROWS, TOKENS, dtype.itemsize, is_fused=False)
    assert activation_bytes(shape, policy) == pytest.approx(_saved_by_a_layer(mode, policy, dtype), rel=0.03)


def _shape(**changed) -> LayerShape:
    sizes = {"hidden": 8, "intermediate": 32, "heads": 2, "kv_heads": 1, "head_dim": 4, "keys": 10, "pairs": 55}
    return LayerShape(**({"rows": 1, "tokens": 10, **sizes} | changed))


def test_a_fused_layer_by_hand():
    """In numbers of two bytes: residuals 80 each, q and output 80, keys and values 40, gate and up 320."""
    kept = {policy: activation_bytes(_shape(), policy) for policy in POLICIES}
    log_sum_exp = 4 * 10 * 2
    attention = 2 * (2 * 80 + 2 * 80 + 2 * 40) + log_sum_exp
    assert kept == {
        "none": attention + 2 * (2 * 80 + 2 * 320),
        "selective": attention + 2 * 2 * 320,
        "attention": attention,
        "full": 2 * 80,
        "offload": 0,
    }
    assert working_bytes(_shape(), "full") == kept["none"] - kept["full"] + 2 * 320 + 2 * 2 * 80


def test_a_policy_that_keeps_less_computes_more():
    sizes = {"hidden": 1536, "intermediate": 8960, "heads": 12, "kv_heads": 2, "head_dim": 128, "keys": 40000}
    shape = _shape(tokens=32768, pairs=2**28, **sizes)
    kept = [activation_bytes(shape, policy) for policy in POLICIES]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(POLICIES)
    seconds = [H100.seconds(recomputed_work(shape, policy)) for policy in POLICIES]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == len(POLICIES)
    product = 2 * 32768 * 1536 * 8960
    assert recomputed_work(shape, "selective").flops == 0
    assert recomputed_work(shape, "attention").flops == 3 * product  # the MLP
    assert recomputed_work(shape, "full") == forward_work(shape) + Work(flops=-product)


@pytest.mark.parametrize("working", [None, {"none": 1, "full": 7, "offload": 9}])
def test_the_cheapest_mixture_that_fits_is_chosen(working):
    extra = working or dict.fromkeys(KEPT, 0)

    def peak(policies) -> int:
        totals = accumulate(KEPT[policy] for policy in policies)
        return max(total + extra[policy] for total, policy in zip(totals, policies, strict=True))

    mixtures = list(combinations_with_replacement(("offload", "full", "none"), 6))
    for budget in range(0, 70):
        chosen = choose_policies(6, KEPT, COST, budget, working)
        fitting = [mixture for mixture in mixtures if peak(mixture) <= budget]
        if not fitting:
            assert chosen == ["offload"] * 6
            continue
        assert peak(chosen) <= budget
        cost = sum(COST[policy] for policy in chosen)
        assert cost == min(sum(COST[policy] for policy in mixture) for mixture in fitting)


def test_the_layers_that_keep_least_come_first():
    chosen = choose_policies(6, KEPT, COST, 40)
    assert chosen == sorted(chosen, key=KEPT.get)
    assert len(set(chosen)) > 1
