"""Bytes of weights, gradients and optimizer states on one rank, by precision and division.

The sums are those of ZeRO (arXiv 1910.02054, table 1), with gradients in float32: the products run in bf16, and AdamW
has two float32 moments and master weights.
"""

from dataclasses import dataclass

from lrsa_lightning.errors import InputError
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.model_size import ModelSize

# Lightning's settings of DeepSpeed and DeepSpeed's own, in parameters.
_REDUCE_BUCKET = 200_000_000
_ZERO3_LIVE = 1_000_000_000


@dataclass(frozen=True)
class Precision:
    """Bytes of a number.

    Attributes:
        element: in matrix products.
        residual: in the residual stream.
        weights: of a parameter, as products use it.
        masters: of its master weight.
        copies: of the copy that autocast makes of a weight in its product.
        gradients: of its gradient.
        moments: of AdamW's two moments.
        is_fused_step: whether AdamW is one kernel; otherwise its step needs four bytes a parameter for a while.
    """

    element: int
    residual: int
    weights: int
    masters: int
    copies: int
    gradients: int
    moments: int
    is_fused_step: bool = True


_MIXED = Precision(2, 4, 4, 0, 2, 4, 8, is_fused_step=False)
_HALF = Precision(2, 2, 2, 0, 0, 2, 4)
_MASTER = Precision(2, 2, 2, 4, 0, 4, 8)
_SINGLE = Precision(4, 4, 4, 0, 0, 4, 8)
PRECISIONS = {
    "bf16-master": _MASTER,
    "bf16-mixed": _MIXED,
    "16-mixed": _MIXED,
    "bf16-true": _HALF,
    "16-true": _HALF,
    "32-true": _SINGLE,
}
_OTHER_NAMES = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def precision_of(name: str | int | None, division: Division) -> Precision:
    """
    Raises:
        InputError: the plan does not cover the precision.
    """
    known = PRECISIONS.get(_OTHER_NAMES.get(str(name), str(name)))
    if known is None:
        raise InputError(f"the plan does not cover trainer.precision {name!r}: it knows {', '.join(PRECISIONS)}")
    if division.kind == "zero":
        return _MASTER if known.element == 2 else Precision(4, 4, 4, 4, 0, 4, 8)
    return known


@dataclass(frozen=True)
class States:
    """Bytes on one rank.

    Attributes:
        weights: as products use them, without what is gathered for a while.
        masters: float32 master weights.
        copies: of autocast.
        gradients: where all are there.
        optimizer: AdamW's moments.
        gathered: weights of other ranks while they are used, and buckets in which gradients travel.
        step: what the optimizer step needs for a while.
        pending: the gradient of the embedding before it is added to the others.
    """

    weights: int
    masters: int
    copies: int
    gradients: int
    optimizer: int
    gathered: int
    step: int
    pending: int

    @classmethod
    def of(cls, size: ModelSize, precision: Precision, division: Division) -> "States":
        make = {"zero": _zero, "fsdp2": _fsdp2}.get(division.kind, _undivided)
        return make(size, precision, division)


def _undivided(size: ModelSize, precision: Precision, division: Division) -> States:
    gradients = size.total * precision.gradients
    return States(
        weights=size.total * precision.weights,
        masters=size.total * precision.masters,
        copies=size.products * precision.copies,
        gradients=gradients,
        optimizer=size.total * precision.moments,
        gathered=gradients if division.kind == "ddp" else 0,
        step=0 if precision.is_fused_step else 4 * size.total,
        # With master weights in bf16, before it is added to the float32 one.
        pending=size.embedding * (precision.element if precision.masters else precision.gradients),
    )


def _zero(size: ModelSize, precision: Precision, division: Division) -> States:
    ranks, stage = division.devices, division.stage
    on_device = 0 if division.offloads_optimizer else 1
    bucket = min(size.total, _REDUCE_BUCKET)
    buckets = bucket * (2 * precision.element + 4)  # two that overlap, and one in float32 for the sum
    live = min(size.total, _ZERO3_LIVE) * precision.element if stage == 3 else 0
    own = -(-size.total // ranks)
    weights = size.total if stage < 3 else 0 if division.offloads_weights else own
    # Stage 1 sums in the dtype of the weights, and makes its part float32 for the step.
    gradients = size.total * precision.element if stage == 1 else own * precision.gradients * on_device
    return States(
        weights=weights * precision.weights,
        masters=own * precision.masters * on_device,
        copies=0,
        gradients=gradients,
        optimizer=own * precision.moments * on_device,
        gathered=buckets + live,
        step=own * 4 * on_device * (2 if stage == 1 else 1),
        pending=size.embedding * precision.element,
    )


def _fsdp2(size: ModelSize, precision: Precision, division: Division) -> States:
    """Float32 shards. The group around embedding and head stays gathered, and two layers are while one runs."""
    own = -(-size.total // division.devices)
    shards = precision.masters or precision.weights
    gathered = size.outside_layers + 2 * size.layer
    in_float32 = size.layer + size.outside_layers  # gradients that are being summed over the ranks
    return States(
        weights=0 if precision.masters else own * shards,
        masters=own * shards if precision.masters else 0,
        copies=size.layer * precision.copies,
        gradients=own * precision.gradients,
        optimizer=own * precision.moments,
        gathered=gathered * precision.weights + in_float32 * precision.gradients,
        step=0 if precision.is_fused_step else 4 * own,
        pending=size.embedding * precision.element,
    )
