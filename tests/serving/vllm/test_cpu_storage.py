"""Blocks of vLLM's CPU back end are read in the order of their slots, whatever order its kernels store them in."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="make test-serve runs these in a venv with vLLM")
pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("isa", ["vec", "vec16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(isa, dtype):
    from lrsa_lightning.serving.vllm.backends.cpu import LagCPUImpl

    impl = LagCPUImpl.__new__(LagCPUImpl)  # an engine makes it
    impl.attn_type, impl.kv_cache_dtype = "decoder", "auto"
    scales = {"_k_scale_float": 1.0, "_v_scale_float": 1.0}
    layer = SimpleNamespace(kv_cache=torch.zeros(5, 2, 32, 128, dtype=dtype), isa=isa, **scales)
    k_NGD, v_NGD = torch.randn(2, 96, 2, 64).to(dtype)
    blocks = torch.tensor([[3, 0, 4]])
    slots = (blocks[0, :, None] * 32 + torch.arange(32)).flatten()
    impl.do_kv_cache_update(layer, k_NGD, v_NGD, layer.kv_cache, slots)
    for read, written in zip(impl.read_blocks(layer, blocks), (k_NGD, v_NGD), strict=True):
        assert torch.equal(read[0], written.transpose(0, 1))


def test_any_order_is_undone():
    from lrsa_lightning.serving.vllm.backends.cpu import _reader

    stored = torch.randperm(32 * 64)
    block = torch.randn(32, 64)
    assert torch.equal(_reader(stored, 32, 64)(block.flatten()[stored]), block)
