"""Generation with the compressed KV cache that this model was trained for, in plain torch and transformers.

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=64)

The rule is Lag-Relative Sparse Attention (arXiv 2506.11498). A sequence is a sink of S tokens, then chunks of L tokens.
Once a chunk is complete, the chunk before it keeps its M = int(r * L) best tokens by LagKV's scores (arXiv 2504.04704).
After N tokens a layer holds about S + r * N + 2L of them. config.json says the sizes, under "lrsa".

The package lrsa_lightning computes the same tokens, with fused kernels, and batches rows of unequal length.

Shape suffixes: B batch, G KV heads, n new tokens, T held tokens, L lag, D head size, M kept tokens of a chunk.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer

_NAME = "lagkv-plain"
_SCORERS = ("lagkv", "window")
# What a layer may ask of its attention that `_attend` does not compute.
_FOREIGN = ("softcap", "s_aux", "sinks", "position_bias")


@dataclass(frozen=True)
class Rule:
    """The sizes, in tokens: S, L and M; and the weight of the values' scores beside the keys'."""

    sink: int
    lag: int
    kept: int
    v_weight: float

    def best(self, k_BGTD, v_BGTD):
        """Offsets of the kept tokens of a chunk, int64 [B, G, M, 1], given the chunk and the next one, T = 2L."""
        scores_BGL = self._lag_scores(k_BGTD) + self.v_weight * self._lag_scores(v_BGTD)
        # topk promises no order among equals, a stable sort does: ties go to the lower position.
        order = scores_BGL.sort(dim=-1, descending=True, stable=True).indices
        return order[..., : self.kept].sort(dim=-1).values.unsqueeze(-1)

    def _lag_scores(self, z_BGTD):
        """Softmax over a chunk of the tokens' std over the channels, each normalised by the next chunk's range."""
        chunk_BGLD, next_BGLD = z_BGTD.float().split(self.lag, dim=2)
        low, high = next_BGLD.amin(dim=2, keepdim=True), next_BGLD.amax(dim=2, keepdim=True)
        # Halves: no difference of finite numbers overflows. A channel without range becomes 0.
        span = (high / 2 - low / 2).masked_fill(high == low, torch.inf)
        normalised = ((chunk_BGLD / 2 - low / 2) / span).clamp(-1e15, 1e15)
        return normalised.std(dim=-1).softmax(dim=-1)


class CompressedLayer(DynamicLayer):
    """Keys and values of one decoder layer: sink, kept tokens, then everything not yet compressed."""

    is_croppable = False

    def __init__(self, rule):
        """
        Args:
            rule: None for a layer that keeps everything.
        """
        super().__init__()
        self.rule, self.seen, self.chunks = rule, 0, 0

    def update(self, key_states, value_states, *_, **__):
        """Adds new tokens of one chunk; returns all that their queries see, [B, G, T, D]."""
        keys, values = super().update(key_states, value_states)
        self.seen += key_states.shape[2]
        # The token that completes a chunk attends before anything is compressed.
        if self.rule is not None:
            self._compress()
        return keys, values

    def _compress(self):
        first = self.rule.sink + self.chunks * self.rule.kept  # where the oldest chunk that is not compressed begins
        stop = first + 2 * self.rule.lag
        if self.keys.shape[2] < stop:
            return
        best = self.rule.best(self.keys[:, :, first:stop], self.values[:, :, first:stop])
        for name in ("keys", "values"):
            z = getattr(self, name)
            chunk = z[:, :, first : first + self.rule.lag]
            kept = chunk.gather(2, best.expand(-1, -1, -1, z.shape[-1]))
            setattr(self, name, torch.cat([z[:, :, :first], kept, z[:, :, first + self.rule.lag :]], dim=2))
        self.chunks += 1

    def get_seq_length(self):
        """Tokens seen, not held."""
        return self.seen

    def crop(self, *_):
        raise ValueError("a compressed cache cannot be cropped: the dropped tokens are gone")


def make_cache(config, retention_ratio=None):
    """The empty cache of a model, by its configuration.

    Args:
        config: it says the rule under "lrsa".
        retention_ratio: r, in place of the configuration's.

    Raises:
        ValueError: the configuration names no rule, or one that is not in this file.
    """
    settings = getattr(config, "lrsa", None)
    if settings is None:
        raise ValueError("config.json has no 'lrsa': this generate serves models that lrsa_lightning has exported")
    scorer = settings.get("scorer", "lagkv")
    if scorer not in _SCORERS:
        raise ValueError(f"scorer {scorer!r} is not among {_SCORERS}: generate with the package lrsa_lightning")
    ratio, lag = settings["retention_ratio"] if retention_ratio is None else retention_ratio, settings["lag_size"]
    kept = 0 if scorer == "window" else int(ratio * lag)
    if not (0 < ratio <= 1 and (kept or scorer == "window")):
        raise ValueError(f"retention_ratio must be in (0, 1] and keep a token of {lag}, got {ratio}")
    rule = Rule(settings["sink_size"], lag, kept, settings.get("v_weight", 1.0))
    skipped = settings.get("skip_layers", ())
    layers = range(config.get_text_config(decoder=True).num_hidden_layers)
    return Cache(layers=[CompressedLayer(None if layer in skipped else rule) for layer in layers])


def generate(inputs=None, *, model, input_ids=None, attention_mask=None, retention_ratio=None, **arguments):
    """transformers' `generate` on the compressed cache: greedy, sampling or beams.

    Args:
        inputs: token ids [B, N], as ``input_ids``.
        model: a causal decoder with full attention in every layer.
        attention_mask: [B, N] of ones at the prompts' tokens; None for all. Rows of unequal length run one by one.
        retention_ratio: r, in place of the configuration's.
        arguments: of transformers' `generate`.

    Returns:
        what `generate` returns: int64 [B, N + new tokens].

    Raises:
        ValueError: something that the rule, or this file, cannot do.
    """
    input_ids = inputs if input_ids is None else input_ids
    _check(input_ids, arguments)
    arguments.pop("prefill_chunk_size", None)  # the rule says the pieces
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows = [ids[real != 0].unsqueeze(0) for ids, real in zip(input_ids, mask, strict=True)]
    is_even = len({row.shape[1] for row in rows}) == 1
    groups = [torch.cat(rows)] if is_even else rows
    is_padded = groups[0].shape != input_ids.shape
    if is_padded and arguments.get("return_dict_in_generate"):
        raise ValueError("return_dict_in_generate takes rows without padding: give one row at a time")
    with _plain_attention(model):
        outs = [_continue(model, ids_BN, retention_ratio, arguments) for ids_BN in groups]
    if not is_padded:
        return outs[0]
    new = [out[:, ids_BN.shape[1] :] for out, ids_BN in zip(outs, groups, strict=True)]
    return _beside(input_ids, new, _padding_id(model, arguments))


def _check(input_ids, arguments):
    if input_ids is None or arguments.get("inputs_embeds") is not None:
        raise ValueError("this generate needs input_ids")
    for name in ("assistant_model", "past_key_values", "cache_implementation", "prompt_lookup_num_tokens"):
        if arguments.get(name) is not None:
            raise ValueError(f"this generate makes its own compressed cache and cannot take {name}")


def _continue(model, ids_BN, retention_ratio, arguments):
    """`generate` of rows of one length, on a cache that holds all of their tokens but the last one."""
    cache = make_cache(model.config, retention_ratio)
    _prefill(model, cache, ids_BN[:, :-1])
    settings = arguments.get("generation_config") or model.generation_config
    counts = ("num_beams", "num_return_sequences")
    copies = [arguments.get(name) or getattr(settings, name, None) or 1 for name in counts]
    if max(copies) > 1:
        cache.batch_repeat_interleave(max(copies))
    # The class's own: with trust_remote_code, from_pretrained replaces the model's by this file's.
    arguments = {**arguments, "past_key_values": cache, "use_cache": True}
    return type(model).generate(model, input_ids=ids_BN, attention_mask=torch.ones_like(ids_BN), **arguments)


@torch.no_grad()
def _prefill(model, cache, ids_BN):
    """Feeds a prompt piece by piece: sink and two chunks, then chunk by chunk. No piece crosses a later boundary."""
    rule = next((layer.rule for layer in cache.layers if layer.rule is not None), None)
    start, stop = 0, ids_BN.shape[1] if rule is None else rule.sink + 2 * rule.lag
    while start < ids_BN.shape[1]:
        piece = ids_BN[:, start:stop]
        positions = torch.arange(start, start + piece.shape[1], device=piece.device).unsqueeze(0)
        model.get_decoder()(input_ids=piece, position_ids=positions, past_key_values=cache, use_cache=True)
        start, stop = stop, stop + (rule.lag if rule else 0)


def _beside(input_ids, new, padding):
    """The prompts as they were given, then the new tokens, padded to one length."""
    most = max(z.shape[1] for z in new)
    new = torch.cat([pad(z, (0, most - z.shape[1]), value=padding) for z in new])
    return torch.cat([input_ids.repeat_interleave(len(new) // len(input_ids), dim=0), new], dim=1)


def _padding_id(model, arguments):
    settings = arguments.get("generation_config") or model.generation_config
    for name in ("pad_token_id", "eos_token_id"):
        ids = arguments.get(name) if arguments.get(name) is not None else getattr(settings, name, None)
        if ids is not None:
            return int(torch.as_tensor(ids).flatten()[0])
    return 0


@contextmanager
def _plain_attention(model):
    """Swaps the attention of the model for `_attend`, which needs no mask; layers may hold different lengths."""
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
    earlier = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(earlier)


def _attend(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **others):
    """Attention of the last n of T tokens, [B, n, H, D]: each query sees all that is held before it, and itself."""
    foreign = [name for name in _FOREIGN if others.get(name) is not None]
    reach = getattr(module.config, "max_position_embeddings", None) or torch.inf
    if foreign or (sliding_window is not None and sliding_window < reach):
        raise ValueError(
            f"layer {module.layer_idx} has {foreign or 'a sliding window'}: use the package lrsa_lightning"
        )
    num_new, num_seen = query.shape[2], key.shape[2]
    visible = torch.ones(num_new, num_seen, dtype=torch.bool, device=query.device).tril(num_seen - num_new)
    out = scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None
