"""Which rule a folder is served with, and whether vLLM as it is configured can follow it exactly.

The checks run in the front end, before a weight is loaded. vLLM itself is not imported here.
"""

import json
import logging
from math import gcd
from typing import Any

from lrsa_lightning.attention.lrsa import LRSA, SETTINGS
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.errors import InputError
from lrsa_lightning.model_folder.engines import misreadings
from lrsa_lightning.saved_settings import KEY, MARK

log = logging.getLogger(__name__)

# What vLLM has at its latest where the classes are as these files expect them.
TESTED = ("0.32.",)
# Tokens that the kernels' blocks are multiples of, and vLLM's own block size.
_BLOCKS = {"cpu": (32, 128)}
_GPU_BLOCKS = (16, 16)
_EXACT_CACHES = ("auto", "float32", "float16", "bfloat16")


def served_mode(vllm_config: Any) -> LRSA:
    """The mode that the folder's config.json names, with what the launch changes in it.

    Args:
        vllm_config: a VllmConfig.

    Raises:
        InputError: the folder names no rule, or the launch changes more than the retention ratio.
    """
    mode = saved_mode(vllm_config.model_config.hf_config)
    if mode is None:
        raise InputError(
            f"config.json: the architecture says that the model is compressed, but there is no {KEY!r}. Export again"
        )
    additional = vllm_config.additional_config
    changes = additional.get(KEY, {}) if isinstance(additional, dict) else {}
    if not isinstance(changes, dict) or changes.keys() - {"retention_ratio"}:
        raise InputError(
            f"--additional-config: {KEY} is {changes!r}; only retention_ratio can differ from what the model was "
            f'trained with, such as {{"{KEY}": {{"retention_ratio": 0.25}}}}'
        )
    return at_ratio(mode, changes["retention_ratio"]) if changes else mode


def check(vllm_config: Any, version: str, device_type: str) -> None:
    """Refuses what is not exact, and settles the size of the blocks.

    Args:
        vllm_config: a VllmConfig that is being made; its cache is changed.
        version: of vLLM.
        device_type: cpu, cuda and so on.

    Raises:
        InputError: the reason, and the way out.
    """
    mode = served_mode(vllm_config)
    if not version.startswith(TESTED):
        raise InputError(f"LRSA: vLLM {version} is untested, and its classes change; install {TESTED[0]}*")
    mode.check(vllm_config.model_config.hf_config)
    check_shape(vllm_config.model_config.hf_config)
    if not mode.rule().drops_tokens:
        return  # full attention, by vLLM's own layers
    for option, reason in _inexact(vllm_config).items():
        raise InputError(f"LRSA: {option}: {reason}; leave it out")
    cache = vllm_config.cache_config
    unit, usual = block_sizes(device_type)
    if not cache.user_specified_block_size:
        cache.block_size, cache.user_specified_block_size = fitting_block_size(mode.rule(), unit, usual), True
    check_block_size(mode.rule(), cache.block_size, unit)
    if cache.enable_prefix_caching:
        log.warning("LRSA: prefix caching is off: a compressed block depends on the tokens that follow it")
        cache.enable_prefix_caching = False


def check_dense(vllm_config: Any) -> None:
    """Refuses full attention, by a stock architecture, for a model whose config.json names a rule that drops tokens.

    Raises:
        InputError: names both ways out.
    """
    config = vllm_config.model_config.hf_config
    mode, stock = saved_mode(config), vllm_config.model_config.architecture
    if mode is not None and mode.rule().drops_tokens:
        compressed, dense = ({"architectures": [f"{MARK}{stock}"]}, {KEY: None})
        raise InputError(
            f"LRSA: config.json names a rule under {KEY!r}, but the architecture {stock}, which runs full attention: "
            f"give --hf-overrides '{json.dumps(compressed)}', or '{json.dumps(dense)}' for full attention"
        )


def _inexact(vllm_config: Any) -> dict[str, str]:
    """What is switched on and would not be exact: option, and why."""
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    reasons = {
        "--speculative-config": (
            vllm_config.speculative_config is not None,
            "a rejected token may have compressed a chunk, which cannot be undone",
        ),
        "--kv-transfer-config": (
            vllm_config.kv_transfer_config is not None,
            "a connector moves blocks as if each held its own tokens",
        ),
        "--kv-cache-dtype": (
            cache.cache_dtype not in _EXACT_CACHES,
            f"{cache.cache_dtype} keys would be scored after rounding",
        ),
        "--pipeline-parallel-size": (parallel.pipeline_parallel_size > 1, "no test has shown it exact"),
        "--decode-context-parallel-size": (
            parallel.decode_context_parallel_size > 1,
            "it divides the tokens of blocks",
        ),
        "--prefill-context-parallel-size": (
            parallel.prefill_context_parallel_size > 1,
            "it divides the tokens of a prompt",
        ),
        "--enable-dbo": (bool(parallel.enable_dbo), "two halves of a batch would compress at once"),
        "--kv-sharing-fast-prefill": (bool(cache.kv_sharing_fast_prefill), "it skips queries of a prompt"),
    }
    return {option: reason for option, (is_on, reason) in reasons.items() if is_on}


def check_shape(config: Any) -> None:
    """Refuses a model whose heads vLLM's class of it would misread.

    Raises:
        InputError: vLLM's tokens would be wrong.
    """
    if misreadings(config.get_text_config(decoder=True)):
        raise InputError("LRSA: vLLM's qwen2 has no head_dim of its own, and takes a wrong one from this config.json")


def at_ratio(mode: LRSA, retention_ratio: float) -> LRSA:
    """The mode that a folder names, with another retention ratio.

    Raises:
        InputError: the ratio is out of range.
    """
    return LRSA(**{name: getattr(mode, name) for name in SETTINGS} | {"retention_ratio": retention_ratio})


def block_sizes(device_type: str) -> tuple[int, int]:
    """Tokens that the kernels' blocks are multiples of on a device, and the size that vLLM takes by itself."""
    return _BLOCKS.get(device_type, _GPU_BLOCKS)


def fitting_block_size(rule: LagRule, unit: int, usual: int) -> int:
    """The largest block, up to the usual size, that divides a chunk and its kept tokens.

    Raises:
        InputError: there is none.
    """
    fitting = [size for size in range(unit, max(unit, usual) + 1, unit) if gcd(rule.lag_size, rule.kept) % size == 0]
    if not fitting:
        raise _no_block(rule, unit)
    return fitting[-1]


def check_block_size(rule: LagRule, block_size: int, unit: int) -> None:
    """Refuses a block size of the user's that does not fit.

    Raises:
        InputError: names one that does.
    """
    if block_size % unit == 0 and gcd(rule.lag_size, rule.kept) % block_size == 0:
        return
    fitting = fitting_block_size(rule, unit, block_size)
    raise InputError(
        f"LRSA: --block-size {block_size}: a chunk of {rule.lag_size} tokens and the {rule.kept} that it keeps must be "
        f"multiples of it, and it of {unit}; take {fitting}, or leave it out"
    )


def _no_block(rule: LagRule, unit: int) -> InputError:
    if rule.lag_size % unit:
        way_out = f"only a lag_size that is a multiple of {unit} can be served"
    else:
        near = sorted({max(unit, rule.kept // unit * unit), min(rule.lag_size, -(-rule.kept // unit) * unit)})
        way_out = f"take a retention_ratio of {' or '.join(f'{kept / rule.lag_size:g}' for kept in near)}"
    return InputError(
        f"LRSA: vLLM's blocks hold multiples of {unit} tokens here, and a compressed chunk keeps {rule.kept} of "
        f"{rule.lag_size}: {way_out}"
    )
