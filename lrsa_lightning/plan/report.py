"""A plan for people and for machines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lrsa_lightning.plan.options import Option
from lrsa_lightning.plan.prediction import Prediction
from lrsa_lightning.plan.run import Run

_GIB = 2**30
_SHOWN_OPTIONS = 6
_PLAIN_WIDTH = 160
_NO_TIMES = "no times, since the rates of this device are unknown"


def verdict(run: Run, prediction: Prediction) -> str:
    """The plan in one line."""
    device, times = prediction.device, prediction.times
    fit = "fits" if prediction.fits else "does NOT fit"
    rest = "" if times.run is None else f", {_duration(times.run)} to step {run.max_steps}"
    time = f"{_seconds(times.step)} a step{rest} ({_source(prediction)})" if device.has_known_rates else _NO_TIMES
    return (
        f"{run.division.devices} x {device.label}, {run.division}: peak {_gib(prediction.peak)} of "
        f"{_gib(device.memory)} GiB at the {prediction.peak_moment}, {fit}; recomputation: {prediction.recomputation}; "
        f"{time}"
    )


def print_report(
    run: Run,
    prediction: Prediction,
    degrees: Mapping[str, Sequence[int]],
    fitting: Sequence[Option],
    way_out: str | None,
) -> None:
    """Prints the plan to stdout: tables in a terminal, plain columns elsewhere.

    Args:
        run: the planned run.
        prediction: of it.
        degrees: possible sequence-parallel degrees by kind.
        fitting: settings that fit, the fastest first.
        way_out: what to do if there are none; None if there are some.
    """
    console = Console(highlight=False)
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD}
    if not console.is_terminal:
        console, style = Console(highlight=False, width=_PLAIN_WIDTH), {"box": None, "padding": (0, 2, 0, 0)}
    console.print(verdict(run, prediction), soft_wrap=True)
    console.print(_components(prediction, style))
    console.print(_figures(run, prediction, degrees, style))
    if way_out is not None:
        console.print(f"no setting fits on {run.division.devices} x {prediction.device.label}. Take {way_out}")
    else:
        console.print(_options(fitting, style))


def as_json(
    run: Run,
    prediction: Prediction,
    degrees: Mapping[str, Sequence[int]],
    fitting: Sequence[Option],
    way_out: str | None,
) -> dict[str, Any]:
    """The plan as plain values: bytes and seconds. Arguments as in `print_report`."""
    return {
        **_values(prediction),
        "device": prediction.device.label,
        "devices": run.division.devices,
        "device_bytes": prediction.device.memory,
        "is_measured_device": prediction.device.is_measured,
        "division": str(run.division),
        "parameters": run.size.total,
        "moments": prediction.moments,
        "ruler_check": prediction.check,
        "policies": prediction.policies,
        "sequence_parallel_degrees": degrees,
        "fitting": [{"settings": option.settings, **_values(option.prediction)} for option in fitting],
        "way_out": way_out,
    }


def _values(prediction: Prediction) -> dict[str, Any]:
    return {
        "peak_bytes": prediction.peak,
        "peak_moment": prediction.peak_moment,
        "fits": prediction.fits,
        "seconds": vars(prediction.times) if prediction.device.has_known_rates else None,
    }


def _components(prediction: Prediction, style: dict[str, Any]) -> Table:
    """What is there at the peak, and the most of each component at any moment."""
    at_peak = prediction.moments[prediction.peak_moment]
    moments = [*prediction.moments.values(), prediction.check]
    table = Table("GiB on a device", **style)
    for name in ("at the peak", "at most", "RULER check"):
        table.add_column(name, justify="right")
    for name in dict.fromkeys(name for parts in moments for name in parts):
        if most := max(parts.get(name, 0) for parts in moments):
            at_check = prediction.check.get(name, 0)
            table.add_row(name, _gib(at_peak.get(name, 0)), _gib(most), _gib(at_check))
    check = sum(prediction.check.values())
    table.add_row("together", _gib(prediction.peak), "", _gib(check))
    table.add_row("usable", _gib(prediction.device.usable))
    return table


def _figures(run: Run, prediction: Prediction, degrees: Mapping[str, Sequence[int]], style: dict[str, Any]) -> Table:
    table = Table(show_header=False, **style)
    table.add_row("parameters", f"{run.size.total:,}")
    for name, figure, time in _work(run, prediction):
        table.add_row(name, f"{figure}, {time}" if prediction.device.has_known_rates else figure)
    if len(run.phases()) > 1:
        table.add_row("attention", "differs between steps: times are means, memory is that of the steps that need most")
    for kind, possible in degrees.items():
        table.add_row(f"degrees of {kind}", ", ".join(map(str, possible)))
    return table


def _work(run: Run, prediction: Prediction) -> Iterator[tuple[str, str, str]]:
    """Parts of a run: name, what there is to do, and how long it takes."""
    times = prediction.times
    yield "micro-batch", f"{run.rows} x {run.seq_len} tokens", _seconds(times.micro_batch)
    speed = f"{times.tokens / times.step:,.0f} tokens/s"
    yield "step", f"{run.micro_batches} micro-batches", f"{_seconds(times.step)}, {speed}"
    if run.ruler is not None:
        yield "RULER check", "with generation", _seconds(times.ruler)
    if times.run is not None:
        yield "run", f"{run.max_steps} steps", _duration(times.run)


def _options(fitting: Sequence[Option], style: dict[str, Any]) -> Table:
    has_times = fitting[0].prediction.device.has_known_rates
    table = Table("what fits, fastest first" if has_times else "what fits, in the order of an A100's times", **style)
    for name in ("peak GiB", *(["s a step"] if has_times else [])):
        table.add_column(name, justify="right")
    table.add_column("recomputation")
    for option in fitting[:_SHOWN_OPTIONS]:
        prediction = option.prediction
        time = [f"{prediction.times.step:.2f}"] if has_times else []
        table.add_row(option.settings, _gib(prediction.peak), *time, prediction.recomputation)
    return table


def _source(prediction: Prediction) -> str:
    return "estimates" if prediction.device.is_measured else "estimates from data sheets: nobody measured this device"


def _gib(number: int) -> str:
    return f"{number / _GIB:.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min"
