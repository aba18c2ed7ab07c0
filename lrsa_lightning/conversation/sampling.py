"""The sampling options: fields of transformers' GenerationConfig that one answer, token by token, can follow."""

from dataclasses import dataclass, fields
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import (
    ClosedUnitInterval,
    FiniteFloat,
    NonNegativeInt,
    PositiveFiniteFloat,
    PositiveInt,
    PositiveUnitInterval,
    checked,
)

# They have no effect on a greedy answer, so giving one of them means sampling.
_OF_SAMPLES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@checked
@dataclass(frozen=True)
class Sampling:
    """Sampling, as in transformers' GenerationConfig. What is not given is the model's own (generation_config.json).

    Attributes:
        max_new_tokens: most tokens of an answer.
        do_sample: draw each token; false takes the most likely one. true where an option of sampling is given.
        temperature: divides the logits; below 1 likely tokens get likelier.
        top_k: draw from so many most likely tokens; 0 for all.
        top_p: draw from the most likely tokens that together have this probability.
        min_p: draw from tokens with at least this fraction of the most likely one's probability.
        typical_p: draw from the most typical tokens that together have this probability.
        epsilon_cutoff: draw from tokens of at least this probability.
        eta_cutoff: the same, relative to the entropy.
        repetition_penalty: above 1 makes tokens that have occurred, also in the document, less likely.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice, also none of the document.
        min_new_tokens: least tokens of an answer.
        suppress_tokens: ids that are never generated.
        bad_words_ids: sequences of ids that are never generated.
        exponential_decay_length_penalty: from so many tokens on, the end gets likelier by this factor per token.
        eos_token_id: ids that end an answer, instead of the model's and the template's.
        stop_strings: texts that end an answer.
        max_time: most seconds of a turn, prefill included.
    """

    max_new_tokens: PositiveInt = 512
    do_sample: bool | None = None
    temperature: PositiveFiniteFloat | None = None
    top_k: NonNegativeInt | None = None
    top_p: PositiveUnitInterval | None = None
    min_p: ClosedUnitInterval | None = None
    typical_p: PositiveUnitInterval | None = None
    epsilon_cutoff: ClosedUnitInterval | None = None
    eta_cutoff: ClosedUnitInterval | None = None
    repetition_penalty: PositiveFiniteFloat | None = None
    no_repeat_ngram_size: NonNegativeInt | None = None
    min_new_tokens: NonNegativeInt | None = None
    suppress_tokens: list[NonNegativeInt] | None = None
    bad_words_ids: list[list[NonNegativeInt]] | None = None
    exponential_decay_length_penalty: tuple[NonNegativeInt, FiniteFloat] | None = None
    eos_token_id: list[NonNegativeInt] | None = None
    stop_strings: list[str] | None = None
    max_time: PositiveFiniteFloat | None = None

    def __post_init__(self):
        """Raises an InputError if two of the options contradict each other."""
        if self.do_sample is False and (given := [name for name in _OF_SAMPLES if getattr(self, name) is not None]):
            raise InputError(f"do_sample false takes the most likely token, so {given[0]} has no effect: leave one out")
        if (self.min_new_tokens or 0) > self.max_new_tokens:
            raise InputError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")

    def given(self) -> dict[str, Any]:
        """The fields that differ from the model's own, as arguments of transformers' `generate`.

        `Conversation` itself knows the ends of an answer: ids and texts.
        """
        names = [field.name for field in fields(self) if field.name not in ("eos_token_id", "stop_strings")]
        given = {name: getattr(self, name) for name in names}
        if self.do_sample is None and any(given[name] is not None for name in _OF_SAMPLES):
            given["do_sample"] = True
        return {name: value for name, value in given.items() if value is not None}
