"""Seconds of an optimizer step and of a run: an estimate from rates, good to about 15% where they were measured."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lrsa_lightning.plan.devices import SECONDS_OF_A_NEW_TOKEN, Device, Work
from lrsa_lightning.plan.layer_shape import LayerShape, like_layers
from lrsa_lightning.plan.memory import backward_work, forward_work, recomputed_work
from lrsa_lightning.plan.run import Run
from lrsa_lightning.plan.sequence import received_bytes
from lrsa_lightning.plan.states import Update

# A step reads weight and gradient in float32, and writes the weight and a copy in bf16. It reads and writes the states.
_BYTES_OF_A_STEP = 14


@dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
        micro_batch: forward and backward of one micro-batch; their mean, where steps differ in their attention.
        step: an optimizer step with all its micro-batches.
        ruler: one RULER check that generates; 0 where there is none.
        run: to the last step, RULER checks included; None where the number of steps is unknown.
        tokens: of an optimizer step, over all devices.
    """

    micro_batch: float
    step: float
    ruler: float
    run: float | None
    tokens: int


class Phase(NamedTuple):
    """The steps of a run that have one attention: the run with it, each layer as a rank sees it, their part."""

    run: Run
    shapes: list[LayerShape]
    part: float


def times_of(run: Run, phases: Sequence[Phase], policies: list[str], device: Device) -> Times:
    """The times of a run on one kind of device, given each layer's policy. A step is the mean of the phases' steps."""
    shapes = phases[0].shapes
    micro_batch = sum(phase.part * device.seconds(_micro_batch(phase, policies)) for phase in phases)
    step = run.micro_batches * micro_batch + device.seconds(_update(run))
    generating, *checks = _ruler(run, shapes, device, step)
    whole = None if run.max_steps is None else run.max_steps * step + sum(checks)
    return Times(micro_batch, step, generating, whole, run.global_batch_size * run.seq_len)


def _micro_batch(phase: Phase, policies: list[str]) -> Work:
    """Forward and backward."""
    work = _head(phase.run) + _exchange(phase.run) + _gathering(phase.run)
    for shape, policy in zip(phase.shapes, policies, strict=True):
        work = work + forward_work(shape) + backward_work(shape) + recomputed_work(shape, policy)
    return work


def _head(run: Run) -> Work:
    """The head on one chunk of label tokens: forward, again, and the gradients that are needed."""
    products = 4 if run.size.trains_embedding else 3
    return Work(flops=products * 2 * run.loss_chunk_size * run.config.hidden_size * run.config.vocab_size)


def _exchange(run: Run) -> Work:
    """What sequence parallelism moves in all layers of a micro-batch."""
    received = received_bytes(run.config, run.mode, run.division.sequence_parallel, run.seq_len, run.bytes_of.element)
    return Work(link_bytes=run.rows * run.size.layers * received)


def _gathering(run: Run) -> Work:
    """What a micro-batch moves of weights and gradients: all of both where the weights are divided."""
    division, size = run.division, run.size
    others = (division.devices - 1) / division.devices
    weights = 2 * size.total * run.bytes_of.element if division.kind == "fsdp2" or division.stage == 3 else 0
    gradients = 4 * size.trained if division.kind == "fsdp2" or division.stage >= 2 else 0
    return Work(link_bytes=others * (weights + gradients))


def _update(run: Run) -> Work:
    """The optimizer step, with the gradients' sum over the ranks where it waits for the last micro-batch."""
    division, precision, size = run.division, run.bytes_of, run.size.trained
    others = (division.devices - 1) / division.devices
    own = size if division.kind in ("single", "ddp") else size / division.devices
    step = Update(run.optimizer, precision)
    fixed = _BYTES_OF_A_STEP if precision.updated == 4 else _BYTES_OF_A_STEP // 2
    moved = own * (fixed + 2 * step.state_bytes(run.size.tensors) / size)
    update = Work(bytes=moved * (1 if step.is_one_kernel else 3))
    if division.offloads_optimizer:
        update = Work(host_bytes=moved + own * (precision.gradients + precision.element))
    if division.kind == "ddp":
        return update + Work(link_bytes=2 * others * size * precision.gradients)
    if division.kind == "zero" and division.stage < 3:
        return update + Work(link_bytes=others * size * (precision.element + (4 if division.stage == 1 else 0)))
    return update


def _ruler(run: Run, shapes: list[LayerShape], device: Device, step: float) -> list[float]:
    """The time of a check that generates, and then of each check of the run, between which steps take so long."""
    if run.ruler is None:
        return [0.0]
    rating = 0.0
    for _, length, mode in run.ruler.cells():
        for layer, number in Counter(like_layers(run.config, mode, length)).items():
            settings = run.ruler.num_samples, length, shapes[0].element
            shape = LayerShape.of(run.config, mode, *settings, layer_idx=layer)
            rating += device.seconds(forward_work(shape) * number)
    rating /= run.division.devices  # ranks share the samples
    # A rank with fewer samples still makes all passes, in smaller batches. The prefill also rates the references.
    has_all_weights = run.division.kind != "fsdp2" and run.division.stage < 3
    of_layer = SECONDS_OF_A_NEW_TOKEN[device.has_graphs and has_all_weights]
    answering = rating + run.ruler.new_tokens() * run.size.layers * of_layer
    trained = (run.ruler.every_n_steps or run.max_steps or 0) * step
    ends, between = {"always": (answering, answering), "ends": (answering, rating), "never": (rating, rating)}[
        run.ruler.generation
    ]
    first = trained if run.ruler.every_n_steps is None else 0.0
    number = 0 if run.max_steps is None else run.ruler.num_checks(run.max_steps)
    checks = [(ends, first), *[(between, trained)] * (number - 2), (ends, trained)][:number]
    return [run.ruler.seconds(*check) for check in [(answering, trained), *checks]]
