"""The engines' turns, and what comes of them."""

import asyncio
import logging
from collections.abc import Callable
from statistics import median
from typing import Any

from lrsa_lightning.serving.bench.engine import MeasuredEngine
from lrsa_lightning.serving.bench.load import Load

log = logging.getLogger(__name__)
_HIGHEST = ("running_before_preemption", "most_running", "preemptions", "peak_cache_usage", "others_cpu")


def measured(engines: dict[str, dict[str, Any]], load: Load, rounds: int) -> dict[str, Any]:
    """Starts all engines, and lets them take turns, so that a change of the machine meets all of them.

    Args:
        engines: arguments of vLLM's engines, by name.
        load: what each gets in a round.
        rounds: how often. A round before them, which is not counted, warms the engines up.

    Returns:
        The machine, and by engine the rounds and their summary.
    """
    return asyncio.run(_measured(engines, load, rounds))


async def _measured(engines: dict[str, dict[str, Any]], load: Load, rounds: int) -> dict[str, Any]:
    started: list[MeasuredEngine] = []
    try:
        for name, arguments in engines.items():
            log.info("starting the engine %s", name)
            started.append(MeasuredEngine(name, arguments))
        machine = {engine.name: engine.machine for engine in started}
        for engine in started:
            await engine.alone(load, "warm-up")
        found = [await _round(started, load, number) for number in range(rounds)]
    finally:
        for engine in started:
            engine.stop()
    by_engine = {name: [turns[name] for turns in found] for name in engines}
    return {
        "machine": machine,
        "rounds": by_engine,
        "summary": {name: _summary(turns) for name, turns in by_engine.items()},
    }


async def _round(engines: list[MeasuredEngine], load: Load, number: int) -> dict[str, Any]:
    found = {}
    for engine in engines:
        alone = await engine.alone(load, f"alone {number}")
        together = await engine.together(load, f"together {number}")
        found[engine.name] = {"alone": alone, "together": together}
        log.info("round %d, %s: %.2f requests/s", number + 1, engine.name, together["requests_a_second"])
    return found


def _summary(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of each figure over the rounds; of counts and of others' CPU the highest."""
    return {kind: {name: _of(name)(turn[kind][name] for turn in turns) for name in turns[0][kind]} for kind in turns[0]}


def _of(name: str) -> Callable:
    return max if name in _HIGHEST else median
