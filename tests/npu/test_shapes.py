"""A layer of Qwen2.5-7B's shape at 32K tokens, in tensors without memory: every operator takes these shapes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from lrsa_lightning import LRSA, Vanilla

pytestmark = pytest.mark.npu
TOKENS = 32768


@pytest.fixture
def bf16():
    """The default dtype; a mask without memory is not left to other tests."""
    from lrsa_lightning.attention.fill_npu import _causal_mask

    torch.set_default_dtype(torch.bfloat16)
    _causal_mask.cache_clear()
    yield
    _causal_mask.cache_clear()
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", [Vanilla(), LRSA(), LRSA(retention_ratio=0.25)], ids=repr)
@pytest.mark.usefixtures("bf16")
def test_a_layer_of_7b_at_32k(mode):
    config = Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4, num_hidden_layers=1
    )
    if isinstance(mode, LRSA):
        from transformers import AttentionInterface

        AttentionInterface.register(mode.registry_key(), mode._transformers_attention)
    config._attn_implementation = mode.registry_key()
    with FakeTensorMode(), torch.device("npu"):
        layer = Qwen2DecoderLayer(config, 0)
        hidden = torch.randn(1, TOKENS, 3584, requires_grad=True)
        positions = torch.arange(TOKENS)[None]
        angles = Qwen2RotaryEmbedding(config)(hidden, positions)
        out = layer(hidden, position_embeddings=angles, attention_mask=None)
        out.sum().backward()
    assert out.shape == hidden.grad.shape == (1, TOKENS, 3584)
    assert out.device.type == "npu"
    assert all(p.grad.shape == p.shape for p in layer.parameters())
