"""Full attention by transformers' own implementations: the NPU's operators and their dtype."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrsa_lightning import Vanilla
from tests.conftest import make_model

pytestmark = pytest.mark.npu
FUSED = {"npu.npu_fusion_attention_v3.default", "npu.npu_fusion_attention.default"}


class Calls(TorchDispatchMode):
    """Operators that run: their names, and dtype and KV heads of the fused attention."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()
        self.attention: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        if str(func) in FUSED:
            self.attention.append((args[0].dtype, tuple(args[1].shape)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_one_fused_call_a_layer_in_bfloat16_with_kv_heads_as_they_are(implementation, precision):
    """A mask of floats would fall to quadratic mathematics, and a call that autocast does not know to float32."""
    model = make_model().to("npu", torch.bfloat16 if precision == "bf16-true" else torch.float32)
    Vanilla(implementation).install(model)
    ids, positions = torch.arange(24, device="npu")[None], torch.arange(24, device="npu")[None]
    mixed = torch.autocast("npu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with Calls() as calls, mixed:
        model(input_ids=ids, position_ids=positions, use_cache=False)
    layers, kv_heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    assert [dtype for dtype, _ in calls.attention] == [torch.bfloat16] * layers
    assert all(kv_heads in shape for _, shape in calls.attention)
    assert not any("softmax" in name for name in calls.names)
