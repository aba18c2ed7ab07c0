"""Turns on one KV cache: each prefills its new tokens alone, then decodes an answer.

Shape suffixes: B batch (1), N tokens, D hidden size, V vocabulary.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.conversation.sampling import Sampling
from lrsa_lightning.decoding import DecodingStep
from lrsa_lightning.generation import prefill

# Called with the tokens that are prefilled so far, and with those of the turn.
OnPrefill = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What a turn gave, and what it took.

    Attributes:
        ids: new tokens, without the one that ended the answer; empty where a document was read alone.
        prompt_tokens: tokens that the turn prefilled.
        prefill_seconds: time for them.
        new_tokens: tokens that were drawn, the end token included.
        decoding_seconds: time for them.
        cache_bytes: keys and values that the cache holds afterwards.
        dense_bytes: those of all tokens so far.
    """

    ids: list[int]
    prompt_tokens: int
    prefill_seconds: float
    new_tokens: int
    decoding_seconds: float
    cache_bytes: int
    dense_bytes: int


class Conversation:
    """One conversation with a model, on one cache of an attention mode.

    transformers' `generate` prepares processors of logits and criteria to stop; the loop over tokens is ours.

    Attributes:
        cache: the mode's.
        ids: all tokens so far, without the ends of answers.
    """

    def __init__(
        self,
        model,
        mode: AttentionMode,
        sampling: Sampling,
        ends: Sequence[int] = (),
        stopping_criteria: Sequence[Callable] = (),
        seed: int = 42,
        prefill_chunk_size: int = 4096,
        max_tokens: int | None = None,
    ):
        """
        Args:
            model: a transformers causal decoder, in evaluation mode. The mode stays installed in it.
            mode: the attention mode.
            sampling: options of the answers.
            ends: ids that end an answer besides the model's own, unless ``sampling`` gives all of them.
            stopping_criteria: transformers' `StoppingCriteria` besides those of ``sampling``.
            seed: of the sampling.
            prefill_chunk_size: tokens in a forward pass of the prefill; speed and memory only.
            max_tokens: longest total length, which sizes the cache; None lets it grow.

        Raises:
            InputError: the mode cannot run the model.
        """
        if max_tokens is not None:
            mode = mode.for_length(max_tokens)
        mode = mode.for_generation(model.config)  # of that length, by which its cache has its size
        mode.install(model)
        self._model, self._sampling, self._stopping = model, sampling, StoppingCriteriaList(stopping_criteria)
        self._ends = sampling.eos_token_id or sorted({*ends, *_ends_of(model)})
        self._generator = torch.Generator(model.device).manual_seed(seed)
        self._piece = prefill_chunk_size
        self.cache = mode.make_cache(model.config)
        self.ids: list[int] = []
        self._seen = 0

    @torch.no_grad()
    def read(self, ids: Sequence[int], on_prefill: OnPrefill | None = None) -> Answer:
        """Prefills tokens without an answer, such as a document's."""
        self.ids += ids
        return self._taken(len(self.ids) - self._seen, self._prefill(on_prefill)[1])

    def answer(self, ids: Sequence[int], streamer=None, on_prefill: OnPrefill | None = None) -> Answer:
        """Prefills a turn's tokens and decodes the answer to them.

        Args:
            ids: the turn's tokens, at least one.
            streamer: transformers' `BaseStreamer`, which gets each new token but the end.
            on_prefill: called after each piece of the prefill.
        """
        self.ids += ids
        num_prompt, times = len(self.ids) - self._seen, []
        prompt_1N = torch.tensor([self.ids], device=self._model.device)
        fixed = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
        sequence_1N = self._model.generate(
            prompt_1N,
            attention_mask=torch.ones_like(prompt_1N),
            past_key_values=self.cache,
            custom_generate=partial(self._loop, streamer=streamer, on_prefill=on_prefill, times=times),
            stopping_criteria=self._stopping,
            eos_token_id=self._ends or None,
            pad_token_id=self._ends[0] if self._ends else 0,
            **self._sampling.given(),
            **fixed,
        )
        new = sequence_1N[0, len(self.ids) :].tolist()
        kept = new[:-1] if new[-1] in self._ends else new
        self.ids += kept
        return self._taken(num_prompt, *times, kept, len(new))

    def _loop(
        self,
        model,
        input_ids: Tensor,
        *,
        logits_processor,
        stopping_criteria,
        generation_config,
        streamer,
        on_prefill: OnPrefill | None,
        times: list[float],
        **_,
    ) -> Tensor:
        """What transformers' `generate` calls: the sequence with its answer, [1, N]; appends its two times."""
        logits_1V, seconds = self._prefill(on_prefill)
        times.append(seconds)
        started = time.perf_counter()
        step = DecodingStep(model, self.cache, torch.tensor([[self._seen]], device=model.device))
        while True:
            # A copy: processors write into it, and the step writes its next logits into the same memory.
            scores_1V = logits_processor(input_ids, logits_1V.to(torch.float32, copy=True))
            token_1 = self._drawn(scores_1V, generation_config.do_sample)
            input_ids = torch.cat([input_ids, token_1[:, None]], dim=1)
            if streamer is not None and int(token_1) not in self._ends:
                streamer.put(token_1.cpu())
            if bool(stopping_criteria(input_ids, scores_1V).all()):
                break
            logits_1V = step(token_1)
            self._seen += 1
        if streamer is not None:
            streamer.end()
        times.append(time.perf_counter() - started)
        return input_ids

    def _drawn(self, scores_1V: Tensor, do_sample: bool) -> Tensor:
        if do_sample:
            return torch.multinomial(scores_1V.softmax(dim=-1), 1, generator=self._generator)[:, 0]
        return scores_1V.argmax(dim=-1)

    def _prefill(self, on_prefill: OnPrefill | None) -> tuple[Tensor, float]:
        """Feeds what the cache has not seen. Returns the logits after it, [1, V], and the seconds."""
        started = time.perf_counter()
        new_1N = torch.tensor([self.ids[self._seen :]], device=self._model.device)
        total = new_1N.shape[1]
        if on_prefill is not None:
            on_prefill(0, total)
        first = self._seen
        for start, hidden_1nD in prefill(self._model, self.cache, new_1N, -(-total // self._piece), first):
            self._seen = start + hidden_1nD.shape[1]
            last_1D = hidden_1nD[:, -1].clone()  # a view would hold the piece
            if self._model.device.type != "cpu":
                torch.accelerator.synchronize(self._model.device)  # the progress and the time are the device's
            if on_prefill is not None:
                on_prefill(self._seen - first, total)
        return self._model.get_output_embeddings()(last_1D), time.perf_counter() - started

    def _taken(self, num_prompt: int, prefill_s: float, decoding_s: float = 0.0, ids=(), num_new: int = 0) -> Answer:
        held = cache_bytes(self.cache)
        return Answer([*ids], num_prompt, prefill_s, num_new, decoding_s, held, dense_bytes(self.cache, self._seen))


def dense_bytes(cache, num_tokens: int) -> int:
    """Bytes of the keys and values of so many tokens in the layers of a cache, were all of them held."""
    a_token = (z[:, :, :1] for layer in cache.layers for z in (layer.keys, layer.values) if z is not None)
    return num_tokens * sum(z.numel() * z.element_size() for z in a_token)


def _ends_of(model) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    return [] if ends is None else torch.tensor(ends).flatten().tolist()
