"""Activation memory of decoder layers by recomputation policy, and the policies that a budget allows.

Nothing here needs a model or a device. `lrsa plan` predicts with it, and the module chooses policies by it.

Shape letters: B rows, N tokens of a rank, T = B * N, D hidden size, F intermediate size, H heads, G KV heads,
d head size, E keys that a row's attention keeps for the backward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.layout import TILE, KVLayout, causal_pairs
from lrsa_lightning.devices import Work

# By memory, most first.
POLICIES = ("none", "selective", "attention", "full", "offload")
# `recompute: auto` keeps what fits in this fraction of the memory that tensors can have.
AUTO_FRACTION = 0.9
# Bytes per label token and word of the vocabulary: logits in float32 and their logarithms; then gradients as well.
LOSS_FORWARD = 8
LOSS_BACKWARD = 12
# The attention's forward takes this fraction of forward and backward.
_ATTENTION_FORWARD = 0.26


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
        is_fused: whether norms and RoPE are one kernel each, and the MLP never keeps SwiGLU's product.
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
        pairs = mode.visible_pairs(tokens, layer_idx)
        return cls(
            rows,
            tokens,
            config.hidden_size,
            config.intermediate_size,
            heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            extended_keys(mode, tokens, layer_idx),
            pairs,
            pairs < causal_pairs(tokens),
            element,
            residual or element,
            is_fused,
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
        """What SwiGLU keeps beside gate and up: where it is not fused the product and silu(gate)."""
        return 0 if self.is_fused else 2 * self.feed_forward * self.element

    @property
    def gate_and_up_bytes(self) -> int:
        return 2 * self.feed_forward * self.element

    @property
    def attention_bytes(self) -> int:
        """Queries, extended keys and values, the output, and its log-sum-exp in float32."""
        keys_and_values = 2 * self.rows * self.keys * self.kv_heads * self.head_dim
        log_sum_exp = 4 * self.rows * self.tokens * self.heads
        return (2 * self._queries + keys_and_values) * self.element + log_sum_exp


def extended_keys(mode: AttentionMode, tokens: int, layer_idx: int = 0) -> int:
    """E of one row: raw keys, and where a rule compresses chunks the kernel's [duplicates ; compact ; raw]."""
    rule = mode.context_rule(tokens, 1, layer_idx)
    if rule is None or not rule.drops_tokens or rule.compressed_chunks(tokens) == 0:
        return tokens
    return KVLayout.of_sequence(rule, tokens, TILE).with_duplicates().num_keys


def activation_bytes(shape: LayerShape, policy: str) -> int:
    """What a layer keeps on the device from its forward to its backward.

    Args:
        shape: of the layer.
        policy: one of `POLICIES`.
    """
    if policy == "offload":
        return 0
    kept = shape.input_bytes
    if policy == "full":
        return kept
    kept += shape.input_bytes + shape.attention_bytes  # and the residual after the attention
    if policy != "attention":
        kept += shape.gate_and_up_bytes
    if policy == "none":
        kept += 2 * shape.norm_bytes + shape.swiglu_bytes
    return kept


def working_bytes(shape: LayerShape, policy: str) -> int:
    """What the backward of one layer needs beside the kept activations: recomputed ones and gradients.

    The most is held within SwiGLU: the gradients of its product and of its factors, and that of the residual stream.
    """
    rebuilt = activation_bytes(shape, "none") - activation_bytes(shape, policy)
    # Fused kernels write over their inputs. Otherwise the product is free, and three gradients are there.
    in_swiglu = shape.gate_and_up_bytes // 2 * (1 if shape.is_fused else 2)
    gradients = in_swiglu + 2 * shape.input_bytes
    in_flight = 2 * shape.input_bytes if policy == "offload" else 0
    return rebuilt + gradients + in_flight


def loss_bytes(shape: LayerShape, chunk_size: int, vocab_size: int, in_float32: int = LOSS_BACKWARD) -> int:
    """The last norm, the last hidden states with their gradient, and the logits of a chunk of label tokens.

    Args:
        shape: of the last layer.
        chunk_size: label tokens whose logits exist at a time.
        vocab_size: words.
        in_float32: bytes per label token and word beside the logits in the dtype of products.
    """
    labels = min(chunk_size, shape.rows * shape.tokens)
    logits = labels * vocab_size * (shape.element + in_float32)
    return logits + shape.input_bytes + shape.norm_bytes + shape.stream * shape.element


def forward_work(shape: LayerShape) -> Work:
    """A forward of one layer."""
    tokens, hidden = shape.rows * shape.tokens, shape.hidden
    projections = 2 * tokens * hidden * 2 * shape.head_dim * (shape.heads + shape.kv_heads)
    products = Work(flops=projections + 6 * tokens * hidden * shape.intermediate)
    return products + _attention(shape) + Work(bytes=_elementwise(shape))


def backward_work(shape: LayerShape) -> Work:
    """A backward of one layer, without recomputation: two products for each one of the forward."""
    forward, attention = forward_work(shape), _attention(shape)
    per_forward = (1 - _ATTENTION_FORWARD) / _ATTENTION_FORWARD
    return Work(flops=2 * forward.flops, bytes=1.5 * forward.bytes) + attention * per_forward


def recomputed_work(shape: LayerShape, policy: str) -> Work:
    """What a policy adds to the backward of one layer."""
    if policy == "none":
        return Work()
    tokens, hidden = shape.rows * shape.tokens, shape.hidden
    if policy in ("selective", "attention"):
        mlp = 6 * tokens * hidden * shape.intermediate if policy == "attention" else 0
        is_cheap = shape.is_fused and policy == "selective"
        return Work(flops=mlp, bytes=_norms(shape) if is_cheap else _norms(shape) + _swiglu(shape))
    # Recomputation ends with the last activation that the backward needs: the down projection's input.
    forward = forward_work(shape) + Work(flops=-2 * tokens * hidden * shape.intermediate)
    return forward + Work(host_bytes=2 * shape.input_bytes) if policy == "offload" else forward


def _attention(shape: LayerShape) -> Work:
    """Its forward. A device's attention rates are those of forward and backward, counted as three forwards."""
    flops = 12 * shape.rows * shape.pairs * shape.heads * shape.head_dim * _ATTENTION_FORWARD
    return Work(sparse_attention_flops=flops) if shape.is_sparse else Work(dense_attention_flops=flops)


def _norms(shape: LayerShape) -> float:
    """Bytes that two norms read and write in a forward: cast, square, mean, scale, cast, weight where not fused."""
    a_number = shape.residual + shape.element if shape.is_fused else 22 + 5 * shape.element
    return 2 * shape.stream * a_number


def _swiglu(shape: LayerShape) -> float:
    """Bytes that SwiGLU reads and writes in a forward: two kernels where it is not fused."""
    return (3 if shape.is_fused else 5) * shape.feed_forward * shape.element


def _elementwise(shape: LayerShape) -> float:
    """Bytes that everything but the matrix products and the attention reads and writes in a forward."""
    rotated = shape.rows * shape.tokens * (shape.heads + shape.kv_heads) * shape.head_dim * shape.element
    rotary = rotated * (2 if shape.is_fused else 10)
    return _norms(shape) + _swiglu(shape) + 6 * shape.input_bytes + rotary


def choose_policies(
    layers: int,
    bytes_by_policy: Mapping[str, int],
    cost_by_policy: Mapping[str, float],
    budget: int,
    working_by_policy: Mapping[str, int] | None = None,
) -> list[str]:
    """The policies of all layers that cost least and fit, first layer first.

    Layers that keep less come first. The backward starts at the last layer, so it has freed what the later layers kept
    when it recomputes the earlier ones.

    Args:
        layers: number of layers.
        bytes_by_policy: what a layer keeps under each policy that may be chosen.
        cost_by_policy: what a policy costs in a layer, in any unit.
        budget: bytes for kept activations, and for the backward of a layer where that is given.
        working_by_policy: what the backward of a layer needs besides, by policy.

    Returns:
        A policy for each layer; the one that keeps least for all layers where nothing fits. A mixture has at most
        three policies.
    """
    frugal = sorted(bytes_by_policy, key=lambda policy: (bytes_by_policy[policy], cost_by_policy[policy]))
    working = working_by_policy or dict.fromkeys(frugal, 0)
    best, least = [frugal[0]] * layers, None
    for chosen in combinations(frugal, min(3, len(frugal))):
        for counts in _compositions(layers, len(chosen)):
            cost = sum(count * cost_by_policy[policy] for policy, count in zip(chosen, counts, strict=True))
            if (least is None or cost < least) and _peak(chosen, counts, bytes_by_policy, working) <= budget:
                least = cost
                best = [policy for policy, count in zip(chosen, counts, strict=True) for _ in range(count)]
    return best


def _peak(chosen: Sequence[str], counts: Sequence[int], kept: Mapping[str, int], working: Mapping[str, int]) -> int:
    """The most that is held at any layer of the backward."""
    total = peak = 0
    for policy, count in zip(chosen, counts, strict=True):
        if count:
            total += count * kept[policy]
            peak = max(peak, total + working[policy])
    return peak


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to split a number of layers into so many parts, none of them negative."""
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(total - first, parts - 1)]
