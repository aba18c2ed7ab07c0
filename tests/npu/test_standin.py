"""The test lane itself: genuine torch_npu, with operators on the device's memory."""

import pytest
import torch

pytestmark = pytest.mark.npu


def test_operators_compute_in_the_devices_memory():
    ones = torch.ones(2, device="npu")
    view = ones[1:]
    view += 1
    assert ones.tolist() == [1.0, 2.0]
    assert torch.npu.memory_allocated() > 0


def test_a_state_of_the_generator_repeats_its_numbers():
    torch.manual_seed(3)
    state = torch.npu.get_rng_state()
    first, second = torch.randn(5, device="npu"), torch.randn(5, device="npu")
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.randn(5, device="npu"), first)
    assert not torch.equal(first, second)


def test_operators_refuse_what_their_schema_does_not_have():
    import torch_npu

    q = torch.randn(1, 2, 4, 8, device="npu")
    with pytest.raises(RuntimeError, match="pre_tokens"):
        torch_npu.npu_fusion_attention(q, q, q, 2, "BNSD", pre_tokens=1)


def test_device_memory_runs_out():
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**40, dtype=torch.uint8, device="npu")
