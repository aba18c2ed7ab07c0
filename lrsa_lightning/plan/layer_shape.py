"""A decoder layer by numbers: its sizes, the tokens that it sees, and the bytes of its activations.

Shape letters: B rows, N tokens of a rank, T = B * N, D hidden size, F intermediate size, H heads, G KV heads,
d head size, E keys that a row's attention keeps for the backward.
"""

from dataclasses import dataclass

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.hybrid import kept_layers
from lrsa_lightning.attention.layer_pairs import layer_pairs
from lrsa_lightning.attention.layout import TILE, KVLayout, causal_pairs
from lrsa_lightning.decoder_sizes import feed_forward_size, head_dim, kv_heads


@dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of one layer.

    Attributes:
        parameters: of all of them.
        rank: the sum of their ranks.
        inputs: the sum of their input sizes.
        outputs: the sum of their output sizes.
        has_dropout: whether dropout makes a copy of each input.
        in_mlp: whether the MLP has some: it then runs as its separate products.
    """

    parameters: int
    rank: int
    inputs: int
    outputs: int
    has_dropout: bool = False
    in_mlp: bool = True


@dataclass(frozen=True)
class LayerShape:
    """A decoder layer with a gated feed-forward (Qwen2, Llama, Mistral and their like) and the tokens that it sees.

    Attributes:
        rows: B.
        tokens: N, tokens of a row on this rank.
        hidden: D.
        intermediate: F.
        heads: H.
        kv_heads: G.
        head_dim: d.
        keys: E, keys of a row that the attention keeps, in tokens of all KV heads; N where it keeps the raw ones.
        pairs: query-key pairs of a row that this rank attends over, all heads.
        is_sparse: whether the attention hides earlier tokens.
        element: bytes of a number in matrix products: 2 in bf16.
        residual: bytes of a number in the residual stream: 4 under autocast.
        is_fused: whether norms, RoPE and SwiGLU are one kernel each.
        has_fused_mlp: whether the MLP never keeps SwiGLU's product.
        adapters: the only parameters of the layer that are trained; None where all are.
        code_bytes: bytes of a number of quantised weights, which products expand; 0 where weights are not quantised.
    """

    rows: int
    tokens: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    keys: int
    pairs: int
    is_sparse: bool = False
    element: int = 2
    residual: int = 2
    is_fused: bool = True
    has_fused_mlp: bool = True
    adapters: Adapters | None = None
    code_bytes: float = 0.0

    @classmethod
    def of(
        cls,
        config,
        mode: AttentionMode,
        rows: int,
        tokens: int,
        element: int = 2,
        residual: int | None = None,
        is_fused: bool = True,
        layer_idx: int = 0,
    ) -> "LayerShape":
        """That of a decoder's configuration on one device, without sequence parallelism.

        Args:
            config: of the text decoder.
            mode: the attention mode.
            rows: B.
            tokens: N.
            element: bytes of a number in matrix products.
            residual: bytes of a number in the residual stream; ``element`` when None.
            is_fused: whether norms, RoPE and SwiGLU are one kernel each.
            layer_idx: a decoder layer; modes may treat layers differently.
        """
        heads = config.num_attention_heads
        pairs = layer_pairs(config, mode, tokens)[layer_idx]
        keeps_own = layer_idx in kept_layers(config)
        return cls(
            rows,
            tokens,
            config.hidden_size,
            feed_forward_size(config),
            heads,
            kv_heads(config),
            head_dim(config),
            tokens if keeps_own else extended_keys(mode, tokens, layer_idx),
            pairs,
            pairs < causal_pairs(tokens),
            element,
            residual or element,
            is_fused,
            has_fused_mlp=is_fused,
        )

    @property
    def stream(self) -> int:
        """T * D."""
        return self.rows * self.tokens * self.hidden

    @property
    def feed_forward(self) -> int:
        """T * F."""
        return self.rows * self.tokens * self.intermediate

    @property
    def _queries(self) -> int:
        """T * H * d."""
        return self.rows * self.tokens * self.heads * self.head_dim

    @property
    def input_bytes(self) -> int:
        """Of a layer's input, or of its gradient."""
        return self.stream * self.residual

    @property
    def norm_bytes(self) -> int:
        """What one norm keeps beside its input: its output, and where it is not fused also its steps in float32."""
        if self.is_fused:
            return self.stream * self.element
        # A copy of its input in float32 takes the input's place, unless that is float32 itself.
        in_float32 = self.stream * (4 - self.residual)
        return in_float32 + self.stream * (self.residual + self.element)

    @property
    def swiglu_bytes(self) -> int:
        """What SwiGLU keeps beside gate and up: the product, and where it is not fused also silu(gate)."""
        kept = 0 if self.has_fused_mlp else 1 if self.is_fused else 2
        return kept * self.feed_forward * self.element

    @property
    def gate_and_up_bytes(self) -> int:
        return 2 * self.feed_forward * self.element

    @property
    def weights(self) -> int:
        """Numbers in the layer's matrices."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads) + 3 * self.hidden * self.intermediate

    @property
    def adapter_bytes(self) -> int:
        """What adapters keep beside the inputs of their layers: each one's product of rank r, and dropped inputs."""
        if self.adapters is None:
            return 0
        dropped = self.adapters.inputs * (self.element + 1) if self.adapters.has_dropout else 0
        return self.rows * self.tokens * (self.adapters.rank * self.element + dropped)

    @property
    def attention_bytes(self) -> int:
        """Queries, extended keys and values, the output, and its log-sum-exp in float32."""
        keys_and_values = 2 * self.rows * self.keys * self.kv_heads * self.head_dim
        log_sum_exp = 4 * self.rows * self.tokens * self.heads
        return (2 * self._queries + keys_and_values) * self.element + log_sum_exp


def like_layers(config, mode: AttentionMode, tokens: int) -> list[int]:
    """For each decoder layer the first one that sees as many pairs: a mode may leave some uncompressed.

    Args:
        config: of the text decoder.
        mode: the attention mode.
        tokens: of a sequence.
    """
    kept, pairs = kept_layers(config), layer_pairs(config, mode, tokens)
    seen = [(number, layer in kept) for layer, number in enumerate(pairs)]
    return [seen.index(number) for number in seen]


def extended_keys(mode: AttentionMode, tokens: int, layer_idx: int = 0) -> int:
    """E of one row: raw keys, and where a rule compresses chunks the kernel's [duplicates ; compact ; raw]."""
    rule = mode.context_rule(tokens, 1, layer_idx)
    if rule is None or not rule.drops_tokens or rule.compressed_chunks(tokens) == 0:
        return tokens
    return KVLayout.of_sequence(rule, tokens, TILE).with_duplicates().num_keys
