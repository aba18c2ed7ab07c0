"""Elastic retention: a mode has several retention ratios, and each optimizer step has one of them.

A model that trains under all of them serves under each. The ratio of a step follows from the number of the step alone
(random: and from the seed). So all ranks and all micro-batches of a step share it, and a resumed run repeats it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from itertools import accumulate
from math import isinf
from typing import Literal, TypeAlias

from lrsa_lightning.attention.rule import LagRule, kept_per_chunk
from lrsa_lightning.attention.scorers import Scorer, ScorerName
from lrsa_lightning.errors import InputError

ScheduleName: TypeAlias = Literal["random", "curriculum"]


@dataclass(frozen=True)
class Retention:
    """The retention ratios of a mode, and which of them an optimizer step has.

    Attributes:
        ratios: r, each in (0, 1].
        weights: one for each ratio, above 0.
        schedule: random draws the ratio of each step; curriculum goes through the ratios in their order.
        serving: place of the ratio outside of training steps.
    """

    ratios: tuple[float, ...]
    weights: tuple[float, ...]
    schedule: ScheduleName
    serving: int

    @classmethod
    def of(
        cls,
        ratio: float | Sequence[float],
        weights: Sequence[float] | None,
        schedule: ScheduleName,
        serving_ratio: float | None,
    ) -> "Retention":
        """By the arguments of `LRSA`, whose numbers are within their ranges; one ratio where a number is given.

        Raises:
            InputError: the list is empty or holds a ratio twice, or the other arguments do not fit it.
        """
        if isinstance(ratio, int | float):
            if weights is not None or schedule == "curriculum" or serving_ratio is not None:
                raise InputError(
                    f"LRSA: retention_ratio is {ratio}, one for all steps: retention_weights, retention_schedule "
                    "curriculum and serving_ratio need a list, such as [1.0, 0.5, 0.25]"
                )
            return cls((ratio,), (1.0,), schedule, 0)
        ratios = check_ratios("retention_ratio", ratio)
        weights = (1.0,) * len(ratios) if weights is None else tuple(weights)
        if len(weights) != len(ratios):
            raise InputError(
                f"LRSA: retention_weights {list(weights)} must have a weight for each of retention_ratio "
                f"{list(ratios)}, in the same order"
            )
        serving_ratio = min(ratios) if serving_ratio is None else serving_ratio
        if serving_ratio not in ratios:
            raise InputError(f"LRSA: serving_ratio {serving_ratio} is not in retention_ratio {list(ratios)}")
        return cls(ratios, weights, schedule, ratios.index(serving_ratio))

    @property
    def fractions(self) -> tuple[Fraction, ...]:
        """The part of the steps that each ratio has: expected under random, up to a step under curriculum."""
        weights = [Fraction(str(weight)) for weight in self.weights]
        return tuple(weight / sum(weights) for weight in weights)

    def place(self, step: int, total_steps: float, seed: int) -> int:
        """Place of the ratio of a step.

        Let b be the sums of the first k `fractions`, and x a number in [0, 1). The place is the k with b[k] <= x and
        x < b[k + 1]. Under curriculum x is step / total_steps. Under random it is the number of the first 64 bits of
        SHA-256 of the text "seed step", divided by 2^64.

        Args:
            step: number of the optimizer step, from 0.
            total_steps: optimizer steps of the run.
            seed: of the run.

        Raises:
            InputError: the run has no number of steps, which curriculum needs.
        """
        if self.schedule == "random":
            bits = sha256(f"{seed} {step}".encode()).digest()[:8]
            progress = Fraction(int.from_bytes(bits, "big"), 2**64)
        elif isinf(total_steps):
            raise InputError(
                "LRSA: retention_schedule curriculum divides the steps of the run: give trainer.max_steps or "
                "trainer.max_epochs"
            )
        else:
            progress = Fraction(step, int(total_steps))
        return min(bisect_right([*accumulate(self.fractions)], progress), len(self.ratios) - 1)


def check_ratios(name: str, ratios: Sequence[float]) -> tuple[float, ...]:
    """A list of ratios as a tuple.

    Raises:
        InputError: it is empty or holds a ratio twice.
    """
    if not len(ratios) or len({*ratios}) < len(ratios):
        problem = "holds a ratio twice" if len(ratios) else "is empty"
        raise InputError(f"LRSA: {name} {list(ratios)} {problem}: list different ratios, such as [1.0, 0.5, 0.25]")
    return tuple(ratios)


def rules_of(
    ratios: Sequence[float], lag_size: int, sink_size: int, scorer: Scorer, name: ScorerName
) -> tuple[LagRule, ...]:
    """A rule for each retention ratio.

    Raises:
        InputError: a ratio keeps no token of a chunk; or there are several, and the scorer keeps none at any.
    """
    if name == "window":
        if len(ratios) > 1:
            raise InputError("LRSA: scorer window keeps no token at any retention_ratio: leave the list out")
        return (LagRule(sink_size, lag_size, 0, scorer),)
    kept = [kept_per_chunk(lag_size, ratio) for ratio in ratios]
    if 0 in kept:
        raise InputError(
            f"LRSA: retention_ratio {ratios[kept.index(0)]} of lag_size {lag_size} keeps no token of a chunk. Raise "
            "either, or take scorer window, which keeps only the sink and the last chunks"
        )
    return tuple(LagRule(sink_size, lag_size, number, scorer) for number in kept)
