"""Sums over texts of what layers keep, and of the attention mass that stays visible.

Shape suffixes: H query heads, G KV heads, N tokens, D head size, Q queries, E tokens of compressed chunks, C classes,
X bins.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrsa_lightning.attention import LRSA
from lrsa_lightning.diagnosis.marks import CLASSES, MarkedText
from lrsa_lightning.diagnosis.mass import Mass, Visibility, attention_mass


@dataclass(frozen=True)
class Bins:
    """Into how many parts places are divided.

    Attributes:
        depth: parts of a text.
        offset: parts of a chunk.
    """

    depth: int = 20
    offset: int = 32


@dataclass
class Counts:
    """Kept tokens, and all that a rule chose from.

    Attributes:
        kept_GX: float64.
        of_X: float64.
    """

    kept_GX: Tensor
    of_X: Tensor

    @classmethod
    def none(cls, groups: int, bins: int) -> "Counts":
        return cls(_zeros(groups, bins), _zeros(bins))

    def add(self, bin_E: Tensor, kept_GE: Tensor) -> None:
        self.kept_GX.index_add_(1, bin_E, kept_GE)
        self.of_X.index_add_(0, bin_E, torch.ones_like(bin_E, dtype=torch.float64))


@dataclass
class Masses:
    """Attention mass of queries from which a rule hides a key.

    Attributes:
        full_HXC: float64.
        visible_HXC: float64.
        queries_X: number of queries.
    """

    full_HXC: Tensor
    visible_HXC: Tensor
    queries_X: Tensor

    @classmethod
    def none(cls, heads: int, bins: int) -> "Masses":
        return cls(*(_zeros(heads, bins, len(CLASSES)) for _ in range(2)), _zeros(bins))

    def add(self, bin_Q: Tensor, mass: Mass) -> None:
        self.full_HXC.index_add_(1, bin_Q, mass.full_HQC.cpu().double())
        self.visible_HXC.index_add_(1, bin_Q, mass.visible_HQC.cpu().double())
        self.queries_X.index_add_(0, bin_Q, torch.ones_like(bin_Q, dtype=torch.float64))


@dataclass
class LayerTally:
    """The sums of a layer."""

    by_depth: Counts
    by_offset: Counts
    by_class: Counts
    queries: Masses
    answers: Masses

    @classmethod
    def none(cls, heads: int, groups: int, bins: Bins) -> "LayerTally":
        counts = [Counts.none(groups, number) for number in (bins.depth, bins.offset, len(CLASSES))]
        return cls(*counts, Masses.none(heads, bins.depth), Masses.none(heads, 1))


@dataclass
class Tally:
    """Takes what each layer shows of each text; `begin` says which text comes.

    Attributes:
        mode: whose rule is applied.
        bins: of places.
        max_queries: of a text; of longer ones so many evenly spaced queries are taken.
        layers: the sums by layer.
    """

    mode: LRSA
    bins: Bins
    max_queries: int
    layers: dict[int, LayerTally] = field(default_factory=dict)
    num_texts: int = 0
    num_tokens: int = 0
    _text: MarkedText | None = None

    def begin(self, text: MarkedText) -> None:
        """The next forward is of this text."""
        self._text = text
        self.num_texts += 1
        self.num_tokens += len(text.ids)

    def observe(self, layer_idx: int, q_1HND: Tensor, k_1GND: Tensor, v_1GND: Tensor, scale: float) -> None:
        """Adds what a layer computes of the text; see `observed.Observer`."""
        (q_HND,), (k_GND,), (v_GND,) = q_1HND, k_1GND, v_1GND
        if layer_idx not in self.layers:
            self.layers[layer_idx] = LayerTally.none(q_HND.shape[0], k_GND.shape[0], self.bins)
        layer, visibility = self.layers[layer_idx], Visibility.of(self.mode.rule(layer_idx), k_GND, v_GND, layer_idx)
        self._count(layer, layer_idx, visibility.kept_GN.cpu().double())
        class_NC = torch.nn.functional.one_hot(self._classes, len(CLASSES)).float().to(q_HND.device)
        hides_N = visibility.hides_N.cpu()
        for masses, query_Q in ((layer.queries, self._spaced), (layer.answers, self._of_answer)):
            query_Q = query_Q[hides_N[query_Q]]
            if len(query_Q):
                mass = attention_mass(q_HND, k_GND, visibility, class_NC, query_Q, scale)
                masses.add(self._bin_of(query_Q, masses.queries_X.shape[0]), mass)

    def _count(self, layer: LayerTally, layer_idx: int, kept_GN: Tensor) -> None:
        rule, num_tokens = self.mode.rule(layer_idx), kept_GN.shape[1]
        start, end = min(rule.sink_size, num_tokens), rule.raw_start(num_tokens)
        position_E, kept_GE = torch.arange(start, end), kept_GN[:, start:end]
        layer.by_depth.add(self._bin_of(position_E, self.bins.depth), kept_GE)
        offset_E = (position_E - rule.sink_size) % rule.lag_size
        layer.by_offset.add(offset_E * self.bins.offset // rule.lag_size, kept_GE)
        layer.by_class.add(self._classes[start:end], kept_GE)

    @property
    def _classes(self) -> Tensor:
        return torch.tensor(self._text.classes)

    @property
    def _spaced(self) -> Tensor:
        """All queries of the text, or so many evenly spaced ones."""
        num_tokens = len(self._text.ids)
        number = min(num_tokens, self.max_queries)
        return torch.arange(number) * num_tokens // number

    @property
    def _of_answer(self) -> Tensor:
        """The queries that predict the tokens of the answer."""
        end = len(self._text.ids) - 1
        return torch.arange(max(0, end - self._text.num_answer), end)

    def _bin_of(self, position: Tensor, bins: int) -> Tensor:
        return position * bins // len(self._text.ids)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)
