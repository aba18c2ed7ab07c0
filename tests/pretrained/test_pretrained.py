"""Models as training begins with them."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrsa_lightning.pretrained.decoder import load_config, load_model
from tests.conftest import TINY_MODEL, make_model


def test_a_pretrained_model_trains_with_gradient_checkpointing(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert load_model(load_config(str(tmp_path), None), str(tmp_path)).training


def test_weights_are_read_for_a_device_that_lightning_names_by_its_index(tmp_path):
    """For any device but plain cpu, transformers wants accelerate to place the model."""
    make_model().save_pretrained(tmp_path)
    with torch.device("cpu", 0):
        model = load_model(load_config(str(tmp_path), None), str(tmp_path))
    expected = make_model().state_dict()
    assert all(torch.equal(z, expected[name]) for name, z in model.state_dict().items())


def test_on_the_meta_device_there_are_no_weights(tmp_path):
    make_model().save_pretrained(tmp_path)
    with torch.device("meta"):
        model = load_model(load_config(str(tmp_path), None), str(tmp_path))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_frequencies_of_rope_are_never_rounded(tmp_path, pretrained):
    """A cast model has the outputs of one that transformers loads in that dtype, at far positions too."""
    make_model().save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model = load_model(theirs.config, str(tmp_path) if pretrained else None, torch.float32)
    model.load_state_dict(make_model().state_dict())
    model = copy.deepcopy(model.to(torch.bfloat16)).eval()
    ids = torch.arange(40).unsqueeze(0)
    positions = ids + 900
    assert torch.equal(*(m(input_ids=ids, position_ids=positions).logits for m in (model, theirs)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs another device than the CPU")
def test_random_weights_are_the_same_on_every_device():
    models = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        with torch.device(device):
            models.append(load_model(load_config(None, {**TINY_MODEL, "vocab_size": 97}), None))
    first, second = (model.state_dict() for model in models)
    assert all(second[name].is_cuda and torch.equal(first[name], second[name].cpu()) for name in first)


def test_the_other_name_of_a_key_is_known():
    """transformers itself writes num_experts or num_local_experts for Qwen3-MoE, by version."""
    keys = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}
    assert load_config(None, keys).num_experts == 4
