"""Runs a model over texts and adds up what a rule keeps of them."""

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

import torch

from lrsa_lightning.attention import LRSA, AttentionMode, Vanilla
from lrsa_lightning.diagnosis.findings import Findings
from lrsa_lightning.diagnosis.marks import MarkedText
from lrsa_lightning.diagnosis.observed import Observed
from lrsa_lightning.diagnosis.tally import Bins, Tally
from lrsa_lightning.errors import InputError

Forward: TypeAlias = Literal["rule", "full"]


@torch.no_grad()
def diagnose(
    model,
    mode: AttentionMode,
    texts: Iterable[MarkedText],
    bins: Bins = Bins(),  # noqa: B008  frozen
    max_queries: int = 4096,
    forward: Forward = "rule",
    done: Callable[[], object] = lambda: None,
) -> Findings:
    """What the rule of a mode keeps of texts, and the fraction of full attention's mass that it shows.

    One text is in a forward, without a cache. A layer is measured as soon as it computes: no layer's queries and keys
    outlive it. The model keeps its installed mode.

    Args:
        model: a transformers causal decoder.
        mode: LRSA with any scorer.
        texts: their ids and classes.
        bins: of places.
        max_queries: of a text; of longer ones so many evenly spaced queries are taken, each exact.
        forward: rule: the layers attend under the rule, as with the compressed cache. full: they attend fully.
        done: called after each text.

    Raises:
        InputError: the mode has no rule, or cannot be exact for the model.
    """
    check_mode(mode)
    tally = Tally(mode, bins, max_queries)
    observed = Observed(mode if forward == "rule" else Vanilla(), tally.observe)
    was_training = model.training
    model.eval()
    try:
        with observed.installed(model):
            for text in texts:
                tally.begin(text)
                ids_1N = torch.tensor([text.ids], device=model.device)
                positions_1N = torch.arange(ids_1N.shape[1], device=model.device).unsqueeze(0)
                model.get_decoder()(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)
                done()
    finally:
        model.train(was_training)
    return Findings.of(tally)


def check_mode(mode: AttentionMode) -> None:
    """Raises InputError unless the mode drops tokens by a rule."""
    if not isinstance(mode, LRSA):
        raise InputError(
            f"{mode!r} keeps every token: name the rule to apply with --attention, such as configs/attention/lrsa.yaml"
        )
    if not mode.rule().drops_tokens:
        raise InputError(f"{mode!r} keeps every token: give --attention a retention_ratio below 1")
