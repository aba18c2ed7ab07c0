"""Peak memory of a rank by component, and the time of a step.

Memory is predicted at each moment of training that can be the highest: the loss, the backward of each layer and the
optimizer step. The peak is that of the highest one. A RULER check stands beside them: its batches shrink to what fits.
Where steps differ in their attention, the memory is that of the steps that need most, and the time is the mean.
"""

from collections import Counter
from dataclasses import dataclass, replace

from lrsa_lightning.decoder_sizes import feed_forward_size
from lrsa_lightning.plan.devices import Device
from lrsa_lightning.plan.layer_shape import LayerShape
from lrsa_lightning.plan.memory import (
    AUTO_FRACTION,
    LOSS_BACKWARD,
    LOSS_FORWARD,
    POLICIES,
    activation_bytes,
    fastest_policies,
    loss_bytes,
    passing_bytes,
    working_bytes,
)
from lrsa_lightning.plan.run import Run
from lrsa_lightning.plan.states import States
from lrsa_lightning.plan.step_time import Phase, Times, times_of

Components = dict[str, int]
# Of the free memory; `BatchSizes` of the RULER check leaves the rest to activations.
_CACHES_MAY_TAKE = 0.8


@dataclass(frozen=True)
class Prediction:
    """What a run takes on a device.

    Attributes:
        device: which.
        moments: bytes by component, by moment of training.
        check: bytes by component in a RULER check; empty where there is none.
        policies: recomputation of each layer.
        times: of a step and of the run.
    """

    device: Device
    moments: dict[str, Components]
    check: Components
    policies: list[str]
    times: Times

    @property
    def peak_moment(self) -> str:
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.moments[self.peak_moment].values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.device.usable

    @property
    def recomputation(self) -> str:
        """How many layers have which policy, those that keep most first."""
        counts = Counter(self.policies)
        return ", ".join(f"{counts[policy]} {policy}" for policy in POLICIES if counts[policy])


def predict(run: Run, device: Device) -> Prediction:
    """
    Raises:
        InputError: batches do not divide, or the plan does not cover a setting; says which.
    """
    phases = [Phase(phase, _shapes(phase, device), part) for phase, part in run.phases()]
    shapes = max((phase.shapes for phase in phases), key=_most_kept)
    largest = max(shapes, key=lambda shape: activation_bytes(shape, "none"))
    states = States.of(run.size, run.bytes_of, run.division, run.optimizer, run.quantisation)
    policies = _policies(run, states, largest, device)
    moments = {
        **_forward(states, shapes, policies),
        "loss": _at_loss(run, states, shapes, policies),
        **_backward(run, states, shapes, policies),
        "optimizer step": _resident(states) | {"optimizer step": states.step},
    }
    check = _at_ruler_check(run, states, device) if run.ruler is not None and run.ruler.lengths else {}
    return Prediction(device, moments, check, policies, times_of(run, phases, policies, device))


def _shapes(run: Run, device: Device) -> list[LayerShape]:
    fused_mlp = device.has_fused_mlp and run.has_plain_mlp
    return [replace(shape, has_fused_mlp=shape.is_fused and fused_mlp) for shape in run.shapes()]


def _most_kept(shapes: list[LayerShape]) -> int:
    """Bytes that layers keep at most."""
    return sum(activation_bytes(shape, "none") for shape in shapes)


def _policies(run: Run, states: States, shape: LayerShape, device: Device) -> list[str]:
    """Those of `model.recompute`; auto chooses by the memory that is free beside everything else."""
    if run.recompute != "auto":
        return [run.recompute] * run.size.layers
    loss = _loss_bytes(run, shape, LOSS_BACKWARD)
    budget = int(AUTO_FRACTION * device.usable) - sum(_resident(states).values()) - states.gathered - states.copies
    return fastest_policies(run.size.layers, shape, budget, loss, states.pending, device)


def _resident(states: States) -> Components:
    return {
        "weights": states.weights,
        "master weights": states.masters,
        "gradients": states.gradients,
        "optimizer states": states.optimizer,
    }


def _loss_bytes(run: Run, shape: LayerShape, in_float32: int) -> int:
    return loss_bytes(shape, run.loss_chunk_size, run.config.vocab_size, in_float32)


def _forward(states: States, shapes: list[LayerShape], policies: list[str]) -> dict[str, Components]:
    """The forward of the last layer of each policy. The gradients of the step before are there, as at the loss."""
    moments, kept, copies = {}, 0, _copies(states, policies)
    last = {policy: index for index, policy in enumerate(policies)}
    for index, (shape, policy) in enumerate(zip(shapes, policies, strict=True)):
        kept += activation_bytes(shape, policy)
        if index == last[policy]:
            moments[f"forward of layer {index}"] = _resident(states) | {
                "gathered and buckets": states.gathered,
                "copies of autocast": copies,
                "activations": kept,
                "activations in passing": passing_bytes(shape, policy),
            }
    return moments


def _copies(states: States, policies: list[str]) -> int:
    """The copies that autocast keeps; none was seen where all layers are computed again."""
    return states.copies if any(policy not in ("full", "offload") for policy in policies) else 0


def _at_loss(run: Run, states: States, shapes: list[LayerShape], policies: list[str]) -> Components:
    """The end of the forward. The gradients of the step before are there: Lightning frees them after it."""
    return _resident(states) | {
        "gathered and buckets": states.gathered,
        "copies of autocast": _copies(states, policies),
        "activations": sum(map(activation_bytes, shapes, policies)),
        "loss": _loss_bytes(run, shapes[-1], LOSS_FORWARD),
    }


def _backward(run: Run, states: States, shapes: list[LayerShape], policies: list[str]) -> dict[str, Components]:
    """The backward of the loss and of each layer. Its activations and those of the layers before it are still kept."""
    moments, kept = {}, 0
    adds_up = run.micro_batches > 1 or run.division.kind == "zero"
    for index, (shape, policy) in enumerate(zip(shapes, policies, strict=True)):
        kept += activation_bytes(shape, policy)
        done = max(0, run.size.trained - run.size.trained_layer * (index + 1))
        gradients = states.gradients if adds_up else states.gradients * done // run.size.trained
        moments[f"backward of layer {index}"] = _resident(states) | {
            "gradients": gradients,
            "gradients on their way": states.pending if run.size.is_tied else 0,
            "gathered and buckets": states.gathered,
            "copies of autocast": _copies(states, policies),
            "activations": kept,
            "recomputed, and gradients of activations": working_bytes(shape, policy),
        }
    at_loss = moments[f"backward of layer {len(shapes) - 1}"] | {
        "gradients": states.gradients if adds_up else 0,
        "recomputed, and gradients of activations": 0,
        "loss": _loss_bytes(run, shapes[-1], LOSS_BACKWARD),
    }
    return {"backward of the loss": at_loss, **moments}


def _at_ruler_check(run: Run, states: States, device: Device) -> Components:
    """Batches shrink until their caches fit, so that a check needs what is there.

    A batch is prefilled first. Its references are then rated on a copy of the caches.
    """
    resident, ruler, precision = _resident(states), run.ruler, run.bytes_of
    element = max(precision.element, precision.weights)  # caches have the dtype of the weights
    piece = ruler.rows * min(ruler.prefill_chunk_size, max(ruler.lengths))
    activations = piece * precision.element * (3 * feed_forward_size(run.config) + 6 * run.config.hidden_size)
    free = device.usable - sum(resident.values()) - states.gathered
    caches = min(ruler.cache_bytes(run.config, element), max(0, int(_CACHES_MAY_TAKE * free)))
    return resident | {
        "gathered and buckets": states.gathered,
        "RULER caches": caches,
        "RULER activations, or copied caches": min(max(activations, caches), max(0, free - caches)),
    }
