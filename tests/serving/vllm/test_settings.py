"""What vLLM is refused for, before it loads a weight, and the blocks that a rule gets. vLLM is not needed."""

from types import SimpleNamespace

import pytest
from transformers import Qwen2Config

from lrsa_lightning import LRSA
from lrsa_lightning.attention.saved_mode import save_mode
from lrsa_lightning.errors import InputError
from lrsa_lightning.serving.vllm.backends.choice import compressed
from lrsa_lightning.serving.vllm.settings import check, served_mode

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def vllm_config(mode: LRSA | None = None, additional_config=None, **changes) -> SimpleNamespace:
    """The parts of a VllmConfig that count; ``changes`` are of any part."""
    config = Qwen2Config(**SIZES, vocab_size=16)
    save_mode(config, mode)
    sizes = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")
    parallel = dict.fromkeys(sizes, 1)
    cache = {"cache_dtype": "auto", "kv_sharing_fast_prefill": False, "enable_prefix_caching": True}
    cache |= {"block_size": 16, "user_specified_block_size": False}
    parts = {
        "parallel_config": SimpleNamespace(**parallel, enable_dbo=False),
        "cache_config": SimpleNamespace(**cache),
        "model_config": SimpleNamespace(hf_config=config),
    }
    top = {"speculative_config": None, "kv_transfer_config": None, "additional_config": additional_config or {}}
    for name, value in changes.items():
        owner = next((part for part in parts.values() if hasattr(part, name)), None)
        if owner is None:
            assert name in top
            top[name] = value
        else:
            setattr(owner, name, value)
    return SimpleNamespace(**parts, **top)


REFUSED = {
    "speculative_config": ("draft", "--speculative-config"),
    "kv_transfer_config": ("connector", "--kv-transfer-config"),
    "cache_dtype": ("fp8", "--kv-cache-dtype"),
    "pipeline_parallel_size": (2, "--pipeline-parallel-size"),
    "decode_context_parallel_size": (2, "--decode-context-parallel-size"),
    "prefill_context_parallel_size": (2, "--prefill-context-parallel-size"),
    "enable_dbo": (True, "--enable-dbo"),
    "kv_sharing_fast_prefill": (True, "--kv-sharing-fast-prefill"),
}


@pytest.mark.parametrize(("name", "value", "option"), [(name, *case) for name, case in REFUSED.items()])
def test_what_is_not_exact_is_refused(name, value, option):
    config = vllm_config(LRSA(), **{name: value})
    with pytest.raises(InputError, match=f"{option}: .*; leave it out"):
        check(config, "0.32.0", "cuda")
    check(vllm_config(LRSA(retention_ratio=1.0), **{name: value}), "0.32.0", "cuda")  # vLLM's own layers


def test_an_untested_version_is_refused():
    with pytest.raises(InputError, match=r"vLLM 0\.33\.1 is untested.*0\.32"):
        check(vllm_config(LRSA()), "0.33.1", "cpu")


def test_an_architecture_that_is_not_exact_is_refused():
    config = vllm_config(LRSA())
    config.model_config.hf_config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(InputError, match="dynamic"):
        check(config, "0.32.0", "cpu")


def test_heads_that_vllm_misreads_are_refused():
    config = vllm_config(LRSA())
    config.model_config.hf_config.head_dim = 64
    with pytest.raises(InputError, match="has no head_dim"):
        check(config, "0.32.0", "cpu")


@pytest.mark.parametrize(("device", "ratio", "block_size"), [("cpu", 0.5, 128), ("cpu", 0.375, 96), ("cuda", 0.5, 16)])
def test_the_rule_decides_on_the_blocks(device, ratio, block_size):
    config = vllm_config(LRSA(lag_size=768, retention_ratio=ratio))
    check(config, "0.32.0", device)
    assert config.cache_config.block_size == block_size
    assert config.cache_config.user_specified_block_size  # the platform does not choose another one
    assert not config.cache_config.enable_prefix_caching


def test_blocks_of_the_user():
    check(vllm_config(LRSA(lag_size=256), block_size=64, user_specified_block_size=True), "0.32.0", "cpu")
    with pytest.raises(InputError, match=r"--block-size 96: a chunk of 256 .* the 128 that it keeps .*; take 64, or"):
        check(vllm_config(LRSA(lag_size=256), block_size=96, user_specified_block_size=True), "0.32.0", "cpu")


def test_a_ratio_that_no_block_divides():
    with pytest.raises(InputError, match=r"keeps 307 of 1024: take a retention_ratio of 0.28125 or 0.3125"):
        check(vllm_config(LRSA(retention_ratio=0.3)), "0.32.0", "cpu")
    with pytest.raises(InputError, match="only a lag_size that is a multiple of 16 can be served"):
        check(vllm_config(LRSA(lag_size=100)), "0.32.0", "cuda")


def test_the_launch_changes_the_ratio_alone():
    config = vllm_config(LRSA(sink_size=4, seed=5), additional_config={"lrsa": {"retention_ratio": 0.25}})
    assert repr(served_mode(config)) == repr(LRSA(sink_size=4, seed=5, retention_ratio=0.25))
    with pytest.raises(InputError, match="only retention_ratio can differ"):
        served_mode(vllm_config(LRSA(), additional_config={"lrsa": {"lag_size": 64}}))


def test_a_folder_without_a_rule():
    with pytest.raises(InputError, match="Export again"):
        check(vllm_config(), "0.32.0", "cpu")


def test_a_back_end_without_compression():
    stock = type("Stock", (), {"get_name": staticmethod(lambda: "FLASHINFER")})
    with pytest.raises(InputError, match="FLASHINFER has no compression; take --attention-backend FLASH_ATTN"):
        compressed(stock)
