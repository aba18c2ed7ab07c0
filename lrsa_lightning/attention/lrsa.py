"""Lag-Relative Sparse Attention as a mode: what YAML says, and the way of the rule into transformers."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from lrsa_lightning.attention import compiled
from lrsa_lightning.attention.architecture import check_architecture, length_dependent_rope
from lrsa_lightning.attention.base import text_decoder
from lrsa_lightning.attention.cache_hook import hand_cache_on
from lrsa_lightning.attention.elastic import ElasticMode
from lrsa_lightning.attention.execution import BackendName, Execution
from lrsa_lightning.attention.hybrid import attend_as_before
from lrsa_lightning.attention.layer_call import check_layer_call, in_computed_dtype
from lrsa_lightning.attention.layout import causal_pairs, visible_pairs
from lrsa_lightning.attention.packing import CuSeqlens
from lrsa_lightning.attention.retention import Retention, ScheduleName, check_ratios, rules_of
from lrsa_lightning.attention.rows import OWN_CACHE, boundaries_found, find_rows, mask_of_known_rows
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.scorers import ScorerName, make_scorer
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import (
    ClosedUnitInterval,
    FiniteFloat,
    NonNegativeInt,
    PositiveFiniteFloat,
    PositiveInt,
    PositiveUnitInterval,
    checked,
)
from lrsa_lightning.saved_settings import save_settings

# What decides which tokens are kept; how it is computed is for the machine that runs the model.
SETTINGS = ("lag_size", "retention_ratio", "sink_size", "v_weight", "skip_layers", "scorer", "seed")
# What says, of a list of ratios, which step has which of them. Serving has no use for it.
ELASTIC_SETTINGS = ("retention_weights", "retention_schedule", "serving_ratio")
# What config.json names besides, of a model from an elastic run.
TRAINED_RATIOS = "trained_ratios"


class LRSA(ElasticMode):
    """Lag-Relative Sparse Attention (arXiv 2506.11498): attention over a cache compressed chunk by chunk.

    The same rule in training (masked forward), in chunked prefill and in decoding (`LagKVCache`).
    """

    needs_padding_mask = False
    prefers_context_parallel = True
    not_in_key = frozenset({"_reach"})

    @checked
    def __init__(
        self,
        lag_size: PositiveInt = 1024,
        retention_ratio: ClosedUnitInterval | Sequence[PositiveUnitInterval] = 0.5,
        sink_size: NonNegativeInt = 16,
        v_weight: FiniteFloat = 1.0,
        skip_layers: Sequence[NonNegativeInt] = (),
        scorer: ScorerName = "lagkv",
        backend: BackendName = "auto",
        chunks_per_fill: PositiveInt = 1,
        seed: int = 0,
        retention_weights: Sequence[PositiveFiniteFloat] | None = None,
        retention_schedule: ScheduleName = "random",
        serving_ratio: PositiveUnitInterval | None = None,
    ):
        """
        Args:
            lag_size: L, tokens in a chunk, scored against the next chunk.
            retention_ratio: r, fraction of a chunk's tokens that are kept; 1 is full attention. Of a list, such as
                [1.0, 0.5, 0.25], each optimizer step of training has one (elastic retention).
            sink_size: S, tokens at the start that are never dropped.
            v_weight: weight of the values' score beside the keys'.
            skip_layers: decoder layers left uncompressed.
            scorer: how a chunk's tokens are ranked: lagkv; as controls random and key_norm at the same budget, and
                window, which keeps only the sink and the last chunks.
            backend: execution of the mask; auto picks by device.
            chunks_per_fill: chunks whose queries share one attention call; speed and memory only.
            seed: of the scorer random.
            retention_weights: of a list of ratios, one weight for each; equal ones when None.
            retention_schedule: random draws the ratio of each step by the weights; curriculum goes through the list in
                its order, each ratio for the part of the steps that its weight says.
            serving_ratio: the ratio of a list outside of training steps: in validation, in generation and in an
                exported folder; the smallest when None.

        Raises:
            InputError: a number outside its range, a layer named twice, sizes that keep no token of a chunk, or
                settings of a list that do not fit it.
        """
        retention = Retention.of(retention_ratio, retention_weights, retention_schedule, serving_ratio)
        if len({*skip_layers}) < len(skip_layers):
            raise InputError(f"LRSA: skip_layers {list(skip_layers)} names a layer twice")
        is_elastic = not isinstance(retention_ratio, int | float)
        super().__init__(retention, is_elastic)
        self.lag_size = lag_size
        self.retention_ratio = retention.ratios if is_elastic else retention_ratio
        self.sink_size = sink_size
        self.v_weight = v_weight
        self.skip_layers = tuple(skip_layers)
        self.scorer = scorer
        self.backend = backend
        self.chunks_per_fill = chunks_per_fill
        self.seed = seed
        self.retention_weights = retention.weights if is_elastic else None
        self.retention_schedule = retention_schedule
        self.serving_ratio = retention.ratios[retention.serving] if is_elastic else None
        self._rules = rules_of(retention.ratios, lag_size, sink_size, make_scorer(scorer, v_weight, seed), scorer)
        self._trained_ratios = retention.ratios if is_elastic else ()
        self._reach: int | None = None

    def __repr__(self) -> str:
        hidden = ELASTIC_SETTINGS if self._in_use is None else ()
        own = {name: value for name, value in vars(self).items() if not name.startswith("_") and name not in hidden}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in own.items())})"

    def settings(self) -> dict[str, Any] | None:
        """See the base class. A subclass is another rule, which these values do not describe."""
        if type(self) is not LRSA:
            return None
        values = {name: getattr(self, name) for name in SETTINGS} | {"skip_layers": list(self.skip_layers)}
        values["retention_ratio"] = self._retention.ratios[self._retention.serving]
        return values | ({TRAINED_RATIOS: [*self._trained_ratios]} if self._trained_ratios else {})

    def trained_for(self, ratios: Sequence[float]) -> "LRSA":
        """The mode, whose `settings` also name the ratios that an elastic run trained its model for.

        Raises:
            InputError: the list is empty or holds a ratio twice.
        """
        mode = copy.copy(self)
        mode._trained_ratios = check_ratios(TRAINED_RATIOS, ratios)
        return mode

    def rule(self, layer_idx: int | None = None) -> LagRule:
        """The rule in a layer; a skipped layer has no chunks."""
        rule = self._rules[self._place]
        return rule.without_chunks() if layer_idx in self.skip_layers else rule

    @property
    def execution(self) -> Execution:
        return Execution(self.backend, self.chunks_per_fill)

    def attention_function(self) -> Callable:
        return self._transformers_attention

    def row_arguments(self, cu_seqlens: CuSeqlens | None, device: torch.device) -> dict[str, Any]:
        known = super().row_arguments(cu_seqlens, device)
        return {"attention_mask": mask_of_known_rows(device), **known}

    def for_heads(self, first_kv_head: int) -> "LRSA":
        mode = copy.copy(self)
        mode._rules = tuple(replace(rule, first_kv_head=first_kv_head) for rule in self._rules)
        return mode

    def context_rule(self, num_tokens: int, size: int, layer_idx: int | None = None) -> LagRule:
        rule = self._rules[self._place]
        return rule.keeping_all() if layer_idx in self.skip_layers else rule

    def visible_pairs(self, num_tokens: int, layer_idx: int | None = None) -> int:
        return visible_pairs(self.rule(layer_idx), num_tokens)

    def make_cache(self, config, lengths: Sequence[int] | None = None, max_tokens: int | None = None):
        from lrsa_lightning.attention.cache import LagKVCache

        return LagKVCache(self, config, lengths, max_tokens or self._reach)

    def for_length(self, num_tokens: int) -> "LRSA":
        mode = copy.copy(self)
        mode._reach = num_tokens
        return mode

    def remark(self, num_tokens: int, num_layers: int) -> str | None:
        modes, layers = [mode for mode, _ in self.phases()], range(num_layers)
        if any(mode.visible_pairs(num_tokens, layer) < causal_pairs(num_tokens) for mode in modes for layer in layers):
            return None
        return (
            f"{self!r} compresses nothing in {num_tokens} tokens: it is full attention here. It drops tokens where "
            "texts are longer than sink_size + 2 lag_size, retention_ratio is below 1 and a layer is not in skip_layers"
        )

    def check(self, config) -> None:
        self._check_decoder(config.get_text_config(decoder=True))

    def _check_decoder(self, config, decoder_class: type | None = None) -> None:
        """`check`, given the configuration of the text decoder alone, and its class where it is known."""
        if rope_type := length_dependent_rope(config):
            raise InputError(
                f"LRSA cannot run with rope_type {rope_type!r}: its angles depend on the length seen so far, so "
                "training, prefill and decoding would disagree. Use default, linear, yarn or llama3."
            )
        reach = self._reach or getattr(config, "max_position_embeddings", None) or inf
        plain = copy.deepcopy(config)  # neither the mode that runs nor the one that is named
        save_settings(plain, None)
        plain._attn_implementation = None
        check_architecture(plain, reach, decoder_class)
        if unknown := [layer for layer in self.skip_layers if layer >= config.num_hidden_layers]:
            raise InputError(f"LRSA: skip_layers {unknown} do not exist, the model has {config.num_hidden_layers}")

    def install(self, model) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        decoder = text_decoder(model)
        self.bind(decoder, type(decoder))
        AttentionInterface.register(self.registry_key(), self._transformers_attention)
        AttentionMaskInterface.register(self.registry_key(), find_rows)
        super().install(model)

    def bind(self, decoder, decoder_class: type | None = None) -> None:
        """Prepares a text decoder for the mode, but does not install it.

        Args:
            decoder: it, or a model around it that is being built.
            decoder_class: its class; that of transformers for its configuration when None.

        Raises:
            InputError: the mode cannot be exact for it.
        """
        self._check_decoder(decoder.config, decoder_class)
        hand_cache_on(decoder)

    def _transformers_attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask,
        scaling: float | None = None,
        *,
        kv_cache=None,
        cu_seqlens: CuSeqlens | None = None,
        kept_layers: frozenset[int] = frozenset(),
        **arguments,
    ) -> tuple[Tensor, None]:
        """The function that transformers calls in each attention layer.

        Args:
            module: the attention layer.
            query: after RoPE, [B, H, n, D].
            key: all keys that the queries need, [B, G, T, D].
            value: their values.
            attention_mask: what `find_rows` returned, or a `mask_of_known_rows`.
            scaling: of the logits.
            kv_cache: the `LagKVCache` in use, if any (`hand_cache_on`).
            cu_seqlens: boundaries of packed samples, as the model's forward was given them.
            kept_layers: the layers of a hybrid model that are not the mode's.
            arguments: everything else.

        Returns:
            [B, n, H, D], and no attention weights.
        """
        layer_idx, num_queries = module.layer_idx, query.shape[2]
        if layer_idx in kept_layers:
            return attend_as_before(module, query, key, value, attention_mask, scaling, **arguments)
        traced = torch.compiler.is_compiling()
        seen = key.shape[2] if kv_cache is None else kv_cache.get_seq_length(layer_idx) + traced * num_queries
        check_layer_call(module, seen, **arguments)
        if traced and num_queries == key.shape[2]:
            states = [in_computed_dtype(z) for z in (query, key, value)]
            return compiled.attend(self, module, states, attention_mask, scaling, kv_cache, cu_seqlens, arguments)
        if cu_seqlens is None:
            positions, use_cache = arguments.get("position_ids"), arguments.get("use_cache")
            cu_seqlens = boundaries_found(attention_mask, module, positions, use_cache, num_queries)
        query, key, value = (in_computed_dtype(z) for z in (query, key, value))
        if kv_cache is not None:
            layer = kv_cache.layers[layer_idx]
            out = layer.attend(query, self.rule(layer_idx), self, self.execution, scaling)
        elif num_queries == key.shape[2]:
            out = self.execution.attend_sequence(
                query, key, value, self.rule(layer_idx), scaling, layer_idx, cu_seqlens
            )
        else:
            raise InputError(f"LRSA found keys of a cache that does not follow its rule. {OWN_CACHE}")
        return out.transpose(1, 2).contiguous(), None
