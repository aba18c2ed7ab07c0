"""The results: fractions by layer and head, as arrays and as JSON.

Shape suffixes: A layers, H query heads, G KV heads, X bins, C classes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrsa_lightning.diagnosis.marks import CLASSES
from lrsa_lightning.diagnosis.tally import Counts, LayerTally, Tally
from lrsa_lightning.files.atomic_text import write_text


@dataclass(frozen=True)
class Findings:
    """Fractions from 0 to 1; NaN where there was nothing to count.

    Kept tokens are counted in chunks that the rule has compressed. Mass is that of full attention, and is averaged
    over queries from which the rule hides a key.

    Attributes:
        layers: indices of the A layers.
        num_texts: how many texts there were.
        num_tokens: of all texts.
        tokens_C: tokens of each class that the rule chose from.
        kept_by_depth_AGX: fraction of tokens kept, by place in the text.
        kept_by_offset_AGX: by place in the chunk.
        kept_by_class_AGC: by class.
        held_AH: fraction of the mass that is on visible keys.
        held_by_depth_AX: the same by the query's place in the text, averaged over heads.
        held_of_answers_AH: the same for the queries that predict the answer.
        answers_look_at_AC: fraction of these queries' mass on each class.
        answers_see_AC: the part of that fraction that is visible, from 0 to 1.
    """

    layers: list[int]
    num_texts: int
    num_tokens: int
    tokens_C: np.ndarray
    kept_by_depth_AGX: np.ndarray
    kept_by_offset_AGX: np.ndarray
    kept_by_class_AGC: np.ndarray
    held_AH: np.ndarray
    held_by_depth_AX: np.ndarray
    held_of_answers_AH: np.ndarray
    answers_look_at_AC: np.ndarray
    answers_see_AC: np.ndarray

    @classmethod
    def of(cls, tally: Tally) -> "Findings":
        """The fractions of sums."""
        layers = dict(sorted(tally.layers.items()))
        values = [*layers.values()]
        return cls(
            [*layers],
            tally.num_texts,
            tally.num_tokens,
            torch.stack([layer.by_class.of_X for layer in values]).amax(dim=0).numpy(),
            *(_stacked(values, lambda layer, name=name: _fraction(getattr(layer, name))) for name in _COUNTS),
            _stacked(values, lambda z: z.queries.visible_HXC.sum((1, 2)) / z.queries.queries_X.sum()),
            _stacked(values, lambda z: z.queries.visible_HXC.sum(2).mean(0) / z.queries.queries_X),
            _stacked(values, lambda z: z.answers.visible_HXC.sum((1, 2)) / z.answers.queries_X.sum()),
            _stacked(values, lambda z: z.answers.full_HXC.sum(1).mean(0) / z.answers.queries_X.sum()),
            _stacked(values, lambda z: z.answers.visible_HXC.sum((0, 1)) / z.answers.full_HXC.sum((0, 1))),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, null for NaN, and the names of the classes."""
        plain = {name.rpartition("_")[0] if name.rpartition("_")[2].isupper() else name: _plain(value)
                 for name, value in asdict(self).items()}  # fmt: skip
        return {"classes": [*CLASSES], **plain}

    def metrics(self) -> dict[str, float]:
        """Means over layers and heads, by names for a logger; those that have a value."""
        kept = {name: self.kept_by_class_AGC[..., i] for i, name in enumerate(CLASSES)}
        values = {"held": self.held_AH, "held_of_answers": self.held_of_answers_AH}
        values |= {f"kept/{name}": own for name, own in kept.items()}
        return {f"diagnosis/{name}": float(np.nanmean(z)) for name, z in values.items() if not np.isnan(z).all()}

    def write(self, path: Path, **about: Any) -> None:
        """Writes JSON, after what it is about."""
        write_text(path, json.dumps({**about, **self.as_json()}) + "\n")


_COUNTS = ("by_depth", "by_offset", "by_class")


def _fraction(counts: Counts) -> torch.Tensor:
    return counts.kept_GX / counts.of_X


def _stacked(layers: list[LayerTally], measure) -> np.ndarray:
    return torch.stack([measure(layer) for layer in layers]).numpy()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return (None if np.isnan(value) else round(value, 6)) if isinstance(value, float) else value
