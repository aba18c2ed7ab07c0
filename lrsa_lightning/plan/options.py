"""The settings that a run could have instead, and which of them fit on the devices: the fastest first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.errors import InputError
from lrsa_lightning.plan.devices import DEVICES, Device
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.memory import POLICIES
from lrsa_lightning.plan.prediction import Prediction, predict
from lrsa_lightning.plan.run import Run
from lrsa_lightning.plan.sequence import KINDS

RECOMPUTE = ("auto", *(policy for policy in POLICIES if policy != "attention"))  # attention is a part of auto alone


@dataclass(frozen=True)
class Option:
    """A run with other settings, and what it takes."""

    run: Run
    prediction: Prediction

    @property
    def settings(self) -> str:
        return f"{self.run.division}, recompute {self.run.recompute}"


def options(run: Run, device: Device, recomputation: Sequence[str] = RECOMPUTE) -> list[Option]:
    """All combinations of division, sequence-parallel degree and recomputation on the run's number of devices."""
    found = []
    for division in _divisions(run.division):
        for recompute in recomputation:
            other = replace(run, division=division, recompute=recompute)
            try:
                found.append(Option(other, predict(other, device)))
            except InputError:  # batches or sequences cannot be divided so
                break
    return found


def fitting_options(run: Run, device: Device, recomputation: Sequence[str] = RECOMPUTE) -> list[Option]:
    """Those that fit, the fastest first."""
    fitting = [option for option in options(run, device, recomputation) if option.prediction.fits]
    return sorted(fitting, key=lambda option: option.prediction.times.step)


def way_out(run: Run, device: Device) -> str:
    """What to do where nothing fits on the run's devices: the fewest devices, or another device, that would do."""
    for count in (2, 4, 8, 16, 32, 64):
        if count > run.division.devices and (found := _fastest(run, device, count)):
            return f"{count} x {device.label}: {found.settings}"
    larger = [other for other in DEVICES.values() if other.memory > device.memory]
    for other in larger:
        if found := fitting_options(run, other):
            return f"{other.label}: {found[0].settings}"
    return "nothing that the plan knows: shorten data.seq_len"


def _fastest(run: Run, device: Device, count: int) -> Option | None:
    more = replace(run, division=Division("zero", count, stage=3))
    return next(iter(fitting_options(more, device, ["auto"])), None)


def _divisions(given: Division) -> Iterator[Division]:
    """The given division, and for several devices ZeRO-2, ZeRO-3 and FSDP2, with each degree that divides them."""
    count = given.devices
    if count == 1:
        yield given
        return
    kinds = {("zero", 2), ("zero", 3), ("fsdp2", 0), (given.kind, given.stage)}
    degrees = [p for p in range(1, count + 1) if count % p == 0]
    for kind, stage in sorted(kinds):
        for degree in degrees:
            for sharing in KINDS if degree > 1 else KINDS[:1]:
                offload = given if (kind, stage) == (given.kind, given.stage) else Division()
                yield Division(
                    kind,
                    count,
                    stage,
                    offload.offloads_optimizer,
                    offload.offloads_weights,
                    SequenceParallel(degree, sharing if degree > 1 else "auto"),
                )
