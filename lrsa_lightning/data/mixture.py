"""Several files in one training set, each taken as often as its weight says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from lrsa_lightning.data.sample import Sample
from lrsa_lightning.errors import InputError


def weight_of(file: str, files: Sequence[str], mixture: Mapping[str, float]) -> float:
    """A file's weight, by its full name, its name or its name without endings; 1 where the mixture has none.

    Raises:
        InputError: the mixture names something that is none of the files.
    """
    if unknown := [name for name in mixture if not any(name in _names(other) for other in files)]:
        known = ", ".join(Path(other).name for other in files)
        raise InputError(f"data.mixture names {unknown[0]!r}, which is none of data.train_files: {known}")
    return next((weight for name, weight in mixture.items() if name in _names(file)), 1.0)


def _names(file: str) -> tuple[str, str, str]:
    name = Path(file).name
    return file, name, name.split(".")[0]


def mix(samples: Iterable[Sample], weight: float, seed: int) -> list[Sample]:
    """Each sample ``weight`` times, a fraction by lot of (seed, id); copies have ids of their own."""
    mixed = []
    for sample in samples:
        times = int(weight) + (Random(f"{seed}:{sample.id}").random() < weight % 1)
        mixed += [sample if copy == 0 else replace(sample, id=f"{sample.id}#{copy + 1}") for copy in range(times)]
    return mixed
