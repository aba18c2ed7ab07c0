"""Activation memory and work of decoder layers by recomputation policy, and the policies that a budget allows.

Nothing here needs a model or a device. `lrsa plan` predicts with it, and the module chooses policies by it.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import get_args

from lrsa_lightning.plan.devices import Device, Work
from lrsa_lightning.plan.layer_shape import LayerShape
from lrsa_lightning.recompute.policies import Policy

# By memory, most first.
POLICIES = get_args(Policy)
# `recompute: auto` keeps what fits in this fraction of the memory that tensors can have.
AUTO_FRACTION = 0.92
# Bytes per label token and word of the vocabulary: logits in float32 and their logarithms; then gradients as well.
LOSS_FORWARD = 8
LOSS_BACKWARD = 12
# The attention's forward takes this fraction of forward and backward.
_ATTENTION_FORWARD = 0.26


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
    kept += shape.input_bytes + shape.attention_bytes + shape.adapter_bytes  # and the residual after the attention
    if policy != "attention":
        kept += shape.gate_and_up_bytes
    if policy == "none":
        kept += 2 * shape.norm_bytes + shape.swiglu_bytes
    return kept


def passing_bytes(shape: LayerShape, policy: str) -> int:
    """What the forward of one layer needs beside what it keeps, where it needs most: at the end of the MLP.

    There are the attention's output, the residual after it, the norm's output, gate, up, their product and the MLP's
    output.
    """
    product = shape.gate_and_up_bytes // 2
    normed = attended = shape.stream * shape.element
    # Fused kernels have no silu(gate) of their own; where it exists, the MLP's output does not yet.
    needed = attended + normed + product + (shape.input_bytes if shape.is_fused else max(product, shape.input_bytes))
    if policy == "none":
        return max(0, needed - normed - shape.swiglu_bytes)
    if policy == "selective":
        return needed
    needed += shape.gate_and_up_bytes
    if policy == "attention":
        return needed
    return needed + shape.input_bytes * (1 if policy == "full" else 3)  # offload: its input, and one on its way


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
    return products + _adapters(shape) + _attention(shape) + Work(bytes=_elementwise(shape) + _expanded(shape))


def backward_work(shape: LayerShape) -> Work:
    """A backward of one layer, without recomputation: two products for each one of the forward.

    A weight that is not trained needs one: that of the gradient of its input.
    """
    forward, attention = forward_work(shape).flops, _attention(shape)
    per_forward = (1 - _ATTENTION_FORWARD) / _ATTENTION_FORWARD
    work = Work(bytes=1.5 * _elementwise(shape) + _expanded(shape)) + attention * per_forward
    if shape.adapters is None:
        return work + Work(flops=2 * forward)
    # The gradients of an adapter's scaled output, and the sum of two gradients of its input.
    moved = 2 * shape.adapters.outputs + 3 * shape.adapters.inputs
    thin = _adapters(shape).flops
    return work + Work(flops=forward + thin, bytes=shape.rows * shape.tokens * moved * shape.element)


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


def _adapters(shape: LayerShape) -> Work:
    """The forward of the adapters: two thin products each; their output is scaled and added to that of the weight."""
    if shape.adapters is None:
        return Work()
    tokens = shape.rows * shape.tokens
    moved = 5 * shape.adapters.outputs + (3 * shape.adapters.inputs if shape.adapters.has_dropout else 0)
    return Work(flops=2 * tokens * shape.adapters.parameters, bytes=tokens * moved * shape.element)


def _expanded(shape: LayerShape) -> float:
    """Bytes that quantised weights read, write and read again before their products."""
    return shape.weights * (shape.code_bytes + 2 * shape.element) if shape.code_bytes else 0.0


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


def fastest_policies(
    layers: int, shape: LayerShape, budget: int, loss: int, pending: int, device: Device
) -> list[Policy]:
    """The fastest mixture of policies that fits.

    Args:
        layers: number of layers.
        shape: of the largest one.
        budget: bytes for kept activations, and for the loss or the backward of a layer.
        loss: bytes of the loss. It is not there at the same time as the backward of a layer.
        pending: bytes of the embedding's gradient before it is added to the others.
        device: whose rates decide what is fast.
    """
    return choose_policies(
        layers,
        {policy: activation_bytes(shape, policy) for policy in POLICIES},
        {policy: device.seconds(recomputed_work(shape, policy)) for policy in POLICIES},
        budget,
        {policy: max(loss, working_bytes(shape, policy) + pending) for policy in POLICIES},
    )


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
