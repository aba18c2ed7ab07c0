"""Whether a rule over full causal attention is exact for a model, found by tracing its decoder.

The trace builds the decoder from its configuration on the meta device, at full size and without memory. It runs the
decoder once in training mode with a cache, and records what each layer asks of the attention function. This works for
any architecture, whatever names its configuration uses. It takes a fifth of a second for the shape of 7B.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.hybrid import kept_layers, kind_that_may_forget, own_cache_layers
from lrsa_lightning.attention.layer_call import check_layer_call
from lrsa_lightning.attention.rows import find_rows
from lrsa_lightning.errors import InputError

_TRACE = "lrsa_trace"
_PROBE = "lrsa_probe"
_TOKENS = 8
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class LayerCall:
    """A call of the attention function.

    Attributes:
        module: the attention layer.
        mask: what the model gave as mask: None, a function that transformers' mask interface was given, or other.
        arguments: all other arguments but the scale and the probe.
        gets_keywords: whether a keyword of the decoder's forward arrives.
        heads: query heads, KV heads.
        sizes: of a head: queries, keys, values.
        from_cache: whether keys and values are those that its cache layer has just returned.
    """

    module: torch.nn.Module
    mask: Any
    arguments: dict[str, Any]
    gets_keywords: bool
    heads: tuple[int, int]
    sizes: tuple[int, int, int]
    from_cache: bool


@dataclass
class _Recorder:
    """An attention function and a mask function that record their calls."""

    calls: list[LayerCall] = field(default_factory=list)
    updates: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def attend(self, module, query, key, value, attention_mask, scaling=None, **arguments):
        # Each call reads what its own update returned, which no other layer may read again.
        cached = [key is k and value is v for k, v in self.updates] == [True]
        self.updates.clear()
        sizes = tuple(z.shape[-1] for z in (query, key, value))
        heads = query.shape[1], key.shape[1]
        gets_keywords = arguments.pop(_PROBE, False)
        self.calls.append(LayerCall(module, attention_mask, arguments, gets_keywords, heads, sizes, cached))
        batch, num_heads, num_tokens, _ = query.shape
        return query.new_empty(batch, num_tokens, num_heads, value.shape[-1]), None

    def mask(self, *_, mask_function: Callable, **__) -> Callable:
        return mask_function

    def cache(self, config):
        from transformers import Cache
        from transformers.cache_utils import DynamicLayer

        recorder = self

        class Layer(DynamicLayer):
            def update(self, key_states, value_states, *args, **kwargs):
                recorder.updates.append(super().update(key_states, value_states, *args, **kwargs))
                return recorder.updates[-1]

        kept = own_cache_layers(config)
        return Cache(layers=[kept.get(layer) or Layer() for layer in range(config.num_hidden_layers)])


def check_architecture(config, reach: float, decoder_class: type | None = None) -> None:
    """Refuses a decoder for which full causal attention, over a cache of the same keys, is not exact.

    Args:
        config: the decoder's own, not that of a model around it.
        reach: tokens of the longest sequence.
        decoder_class: the class that runs; the one transformers has for the configuration when None.

    Raises:
        InputError: names layer and reason.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    for mapping in (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        decoder_class = decoder_class or mapping.get(type(config), None)
    if decoder_class is None:
        return  # a class of the user's own, which `install` finds in the model
    if isinstance(decoder_class, tuple):
        decoder_class = decoder_class[0]
    kept = kept_layers(config)
    if kind := kind_that_may_forget(config):
        raise _refusal(config, f"its layers of {kind} keep a state, and no test has shown that they continue from it")
    traced = _trace(_Key(decoder_class, config.to_json_string(use_diff=False), config))
    layers = [layer for layer in range(getattr(config, "num_hidden_layers", 0)) if layer not in kept]
    calls = [call for call in traced if getattr(call.module, "layer_idx", None) not in kept]
    if [getattr(call.module, "layer_idx", None) for call in calls] != layers:
        kind = "full-attention layers" if kept else "layers"
        reason = f"its {len(layers)} {kind} do not each call transformers' AttentionInterface once ({len(calls)} calls)"
        raise _refusal(config, reason)
    for call in calls:
        _check_call(config, call, reach)


def _check_call(config, call: LayerCall, reach: float) -> None:
    check_layer_call(call.module, reach, **call.arguments)
    layer = f"layer {call.module.layer_idx}"
    if not call.gets_keywords:
        raise _refusal(config, f"{layer} does not pass keywords on to its attention function, and LRSA needs the cache")
    if not call.from_cache:
        raise _refusal(config, f"{layer} attends to other keys than its own cache returns")
    if len(set(call.sizes)) > 1:
        raise _refusal(config, f"{layer} has keys and values of unequal sizes {call.sizes[1:]}")
    if call.mask is not None and not (callable(call.mask) and _is_causal(call.mask, reach)):
        raise _refusal(
            config, f"{layer} is masked otherwise: a sliding window or chunks, a mask of its own, no causality"
        )


def _is_causal(mask_function: Callable, reach: float) -> bool:
    """Whether the mask of so many tokens is causal, seen from its first and last token."""
    last = int(min(reach, 2**62)) - 1
    try:
        with torch.device("cpu"):  # transformers builds a model that it loads on the meta device, without values
            mask = find_rows(mask_function=mask_function, kv_length=last + 1, q_length=1, q_offset=last, batch_size=1)
            return mask.rows.is_causal
    except (RuntimeError, IndexError):
        return False  # the function looks at the tokens


def _refusal(config, reason: str) -> InputError:
    return InputError(
        f"LRSA replaces full causal attention, and is not exact for {config.model_type!r}: {reason}. "
        "Use Vanilla with this model"
    )


@dataclass(frozen=True)
class _Key:
    """What a trace depends on: the class and the configuration, by its text."""

    decoder_class: type
    text: str
    config: Any = field(compare=False)


@lru_cache(maxsize=32)
def _trace(key: _Key) -> list[LayerCall]:
    """The calls that a forward of the decoder makes."""
    # Fake tensors import slowly, but let older versions of transformers ask whether autocast is on for their device.
    for tensors_without_memory in (partial(torch.device, "meta"), _fake_tensors):
        try:
            with torch.random.fork_rng(devices=[]), tensors_without_memory(), torch.no_grad():
                return _run(key.decoder_class, copy.deepcopy(key.config))
        except Exception as error:  # whatever a library's or a user's model raises
            refusal = error
    reason = f"it cannot be traced ({type(refusal).__name__}: {' '.join(str(refusal).split())[:200]})"
    raise _refusal(key.config, reason) from refusal


def _run(decoder_class: type, config) -> list[LayerCall]:
    from transformers import AttentionInterface, AttentionMaskInterface

    recorder = _Recorder()
    AttentionInterface.register(_TRACE, recorder.attend)
    AttentionMaskInterface.register(_TRACE, recorder.mask)
    decoder = decoder_class(config).train()
    decoder.set_attn_implementation(_TRACE)
    # A loop over experts would ask which tokens they have.
    decoder.config._experts_implementation = "batched_mm"
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long)
    cache = recorder.cache(config)
    # Without a mask, some models look for padding in the tokens, which have no values here.
    mask = torch.ones_like(tokens)
    decoder(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **{_PROBE: True})
    return recorder.calls


@contextmanager
def _fake_tensors() -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cpu"):
        yield


def length_dependent_rope(config) -> str | None:
    """The rope_type of a decoder whose frequencies depend on the length seen so far, or None.

    A cached key and a recomputed one would differ. Some models have RoPE parameters for each kind of layer.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    of_kinds = [rope, *(of_kind for of_kind in rope.values() if isinstance(of_kind, dict))]
    return next((kind["rope_type"] for kind in of_kinds if kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE), None)
