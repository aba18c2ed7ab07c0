"""Bytes of weights, gradients and optimizer states on one rank, by precision and division.

The sums are those of ZeRO (arXiv 1910.02054, table 1), with gradients in float32: the products run in bf16, and the
optimizer has master weights. What is not trained has weights alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lrsa_lightning.errors import InputError
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.model_size import ModelSize
from lrsa_lightning.pretrained.quantisation import Quantisation

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
        updated: as the optimizer sees it; torch's states have as many.
        is_fused_step: whether torch's AdamW is one kernel.
    """

    element: int
    residual: int
    weights: int
    masters: int
    copies: int
    gradients: int
    updated: int
    is_fused_step: bool = True


_MIXED = Precision(2, 4, 4, 0, 2, 4, 4, is_fused_step=False)
_HALF = Precision(2, 2, 2, 0, 0, 2, 2)
_MASTER = Precision(2, 2, 2, 4, 0, 4, 4)
_SINGLE = Precision(4, 4, 4, 0, 0, 4, 4)
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
        return _MASTER if known.element == 2 else Precision(4, 4, 4, 4, 0, 4, 4)
    return known


@dataclass(frozen=True)
class Update:
    """The optimizer step.

    Attributes:
        optimizer: which.
        precision: of the run.
    """

    optimizer: OptimizerSettings
    precision: Precision

    @property
    def is_one_kernel(self) -> bool:
        """Whether the step needs no copies: otherwise torch makes one of each weight for a while."""
        found = self.optimizer.found
        return found.library != "torch" or (self.precision.is_fused_step and found.has_fused_kernel)

    def state_bytes(self, tensors: Iterable[int]) -> int:
        """Of weights with so many numbers each."""
        found, args = self.optimizer.found, self.optimizer.args or {}
        return int(sum(found.state_bytes(args, numel, self.precision.updated) for numel in tensors))


@dataclass(frozen=True)
class States:
    """Bytes on one rank.

    Attributes:
        weights: as products use them, without what is gathered for a while.
        masters: float32 master weights.
        copies: of autocast.
        gradients: where all are there.
        optimizer: the optimizer's states.
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
    def of(
        cls,
        size: ModelSize,
        precision: Precision,
        division: Division,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008  frozen
        quantisation: Quantisation | None = None,
    ) -> "States":
        """
        Args:
            size: of the model.
            precision: of the run.
            division: of the run.
            optimizer: of the run.
            quantisation: of the weights beside adapters.
        """
        make = {"zero": _zero, "fsdp2": _fsdp2}.get(division.kind, _undivided)
        return make(size, Update(optimizer, precision), division, _frozen_bytes(size, precision, quantisation))


def _frozen_bytes(size: ModelSize, precision: Precision, quantisation: Quantisation | None) -> int:
    """Of all weights that are not trained. Beside master weights they are in bf16."""
    codes = size.layer_products if quantisation is not None else 0
    bytes_of_codes = codes * quantisation.bytes_a_number if quantisation is not None else 0
    return int(bytes_of_codes) + (size.frozen - codes) * precision.weights


def _undivided(size: ModelSize, update: Update, division: Division, frozen: int) -> States:
    precision = update.precision
    gradients = size.trained * precision.gradients
    return States(
        weights=size.trained * precision.weights + frozen,
        masters=size.trained * precision.masters,
        copies=size.products * precision.copies,
        gradients=gradients,
        optimizer=update.state_bytes(size.tensors),
        gathered=gradients if division.kind == "ddp" else 0,
        step=0 if update.is_one_kernel else 4 * size.trained,
        # With master weights in bf16, before it is added to the float32 one.
        pending=_pending(size, precision.element if precision.masters else precision.gradients),
    )


def _zero(size: ModelSize, update: Update, division: Division, frozen: int) -> States:
    ranks, stage, precision = division.devices, division.stage, update.precision
    on_device = 0 if division.offloads_optimizer else 1
    bucket = min(size.trained, _REDUCE_BUCKET)
    buckets = bucket * (2 * precision.element + 4)  # two that overlap, and one in float32 for the sum
    live = min(size.total, _ZERO3_LIVE) * precision.element if stage == 3 else 0
    own = -(-size.trained // ranks)
    weights = size.trained * precision.weights + frozen
    if stage == 3:
        weights = 0 if division.offloads_weights else own * precision.weights + -(-frozen // ranks)
    # Stage 1 sums in the dtype of the weights, and makes its part float32 for the step.
    gradients = size.trained * precision.element if stage == 1 else own * precision.gradients * on_device
    return States(
        weights=weights,
        masters=own * precision.masters * on_device,
        copies=0,
        gradients=gradients,
        optimizer=update.state_bytes([own]) * on_device,
        gathered=buckets + live,
        step=own * 4 * on_device * (2 if stage == 1 else 1),
        pending=_pending(size, precision.element),
    )


def _fsdp2(size: ModelSize, update: Update, division: Division, frozen: int) -> States:
    """Float32 shards. The group around embedding and head stays gathered, and two layers are while one runs."""
    precision = update.precision
    own = -(-size.trained // division.devices)
    shards = precision.masters or precision.weights
    gathered = size.outside_layers + 2 * size.layer
    outside = size.trained - size.layers * size.trained_layer
    in_float32 = size.trained_layer + max(0, outside)  # gradients that are being summed over the ranks
    frozen = -(-frozen // division.devices)
    return States(
        weights=frozen if precision.masters else own * shards + frozen,
        masters=own * shards if precision.masters else 0,
        copies=size.layer * precision.copies,
        gradients=own * precision.gradients,
        optimizer=update.state_bytes([own]),
        gathered=gathered * precision.weights + in_float32 * precision.gradients,
        step=0 if update.is_one_kernel else 4 * own,
        pending=_pending(size, precision.element),
    )


def _pending(size: ModelSize, of_gradient: int) -> int:
    return size.embedding * of_gradient if size.trains_embedding else 0
