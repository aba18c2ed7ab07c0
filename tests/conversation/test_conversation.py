"""Turns on one cache, against our `generate` over all tokens at once and against transformers' own sampling."""

import signal

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.conversation import Conversation, Sampling
from lrsa_lightning.conversation.session import CtrlC
from lrsa_lightning.errors import InputError
from tests.conftest import make_model

MODES = [
    Vanilla(),
    LRSA(lag_size=8, sink_size=4),
    LRSA(lag_size=8, sink_size=4, retention_ratio=0.25, skip_layers=[0]),
]
IDS = torch.randint(0, 97, (61,), generator=torch.Generator().manual_seed(0)).tolist()
DOCUMENT, FIRST, SECOND = IDS[:37], IDS[37:50], IDS[50:]
GREEDY = Sampling(max_new_tokens=20, do_sample=False)


class Collected(BaseStreamer):
    """The streamed tokens; sends Ctrl-C after so many."""

    def __init__(self, interrupt_after: int | None = None):
        self.tokens, self.has_ended, self._interrupt_after = [], False, interrupt_after

    def put(self, value) -> None:
        self.tokens += value.tolist()
        if len(self.tokens) == self._interrupt_after:
            signal.raise_signal(signal.SIGINT)

    def end(self) -> None:
        self.has_ended = True


def reference(model, ids: list[int], mode, num_new: int = 20) -> list[int]:
    """What our `generate` answers to all of the tokens at once."""
    return generate(model, torch.tensor([ids]), mode, num_new)[0].tolist()


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("max_tokens", [None, 81])
def test_a_greedy_answer_is_that_of_generate(mode, max_tokens):
    streamer, shown = Collected(), []
    conversation = Conversation(make_model(), mode, GREEDY, prefill_chunk_size=16, max_tokens=max_tokens)
    answer = conversation.answer(IDS, streamer, lambda done, total: shown.append((done, total)))
    assert answer.ids == reference(make_model(), IDS, mode) == streamer.tokens
    assert streamer.has_ended
    assert shown[0] == (0, 61)
    assert shown[-1] == (61, 61)
    assert len(shown) == 5


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("prefill_chunk_size", [5, 100])
def test_turns_equal_one_conversation_prefilled_at_once(mode, prefill_chunk_size):
    conversation = Conversation(make_model(), mode, GREEDY, prefill_chunk_size=prefill_chunk_size)
    assert conversation.read(DOCUMENT).prompt_tokens == 37
    first = conversation.answer(FIRST)
    assert first.ids == reference(make_model(), DOCUMENT + FIRST, mode)
    second = conversation.answer(SECOND)
    together = DOCUMENT + FIRST + first.ids + SECOND
    assert second.ids == reference(make_model(), together, mode)
    assert (first.prompt_tokens, second.prompt_tokens) == (13, 12)  # with the last token of the first answer
    at_once = Conversation(make_model(), mode, GREEDY)
    at_once.read((together + second.ids)[:-1])
    assert conversation.cache.get_seq_length() == at_once.cache.get_seq_length() == 100
    for layer, other in zip(conversation.cache.layers, at_once.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys)
        torch.testing.assert_close(layer.values, other.values)


SAMPLINGS = [
    {"temperature": 0.7},
    {"top_k": 5, "top_p": 0.8, "temperature": 2.0},
    {"min_p": 0.01, "repetition_penalty": 1.3},
    {"do_sample": False, "no_repeat_ngram_size": 1},
    {"do_sample": False, "suppress_tokens": list(range(48))},
    {"do_sample": False, "bad_words_ids": [[token] for token in range(30, 90)]},
    {"typical_p": 0.5, "exponential_decay_length_penalty": (5, 1.2)},
]


@pytest.mark.parametrize("given", SAMPLINGS, ids=str)
def test_an_answer_is_that_of_transformers_generate(given):
    """From the same seed, also where the tokens are drawn."""
    model, mode = make_model(), MODES[1]
    ours = Conversation(model, mode, Sampling(max_new_tokens=30, **given), [7], seed=5).answer(IDS)
    torch.manual_seed(5)
    theirs = model.generate(
        torch.tensor([IDS]),
        attention_mask=torch.ones(1, 61),
        past_key_values=mode.make_cache(model.config),
        max_new_tokens=30,
        eos_token_id=[7],
        pad_token_id=0,
        **{"do_sample": True, **given},
    )[0, 61:].tolist()
    assert ours.ids == [token for token in theirs if token != 7]
    assert ours.new_tokens == len(theirs)
    assert ours.ids != reference(model, IDS, mode, 30)


def test_a_seed_gives_the_same_answers_and_another_seed_others():
    sampling = Sampling(max_new_tokens=20, temperature=3.0)

    def answers(seed: int) -> list[list[int]]:
        conversation = Conversation(make_model(), MODES[1], sampling, seed=seed)
        return [conversation.answer(ids).ids for ids in (FIRST, SECOND)]

    assert answers(1) == answers(1) != answers(2)


def test_the_end_token_is_neither_streamed_nor_part_of_the_conversation():
    free = reference(make_model(), IDS, MODES[1])
    end, streamer = free[6], Collected()
    num_before = free.index(end)
    conversation = Conversation(make_model(), MODES[1], GREEDY, [end])
    answer = conversation.answer(IDS, streamer)
    assert answer.ids == streamer.tokens == free[:num_before]
    assert answer.new_tokens == num_before + 1
    assert conversation.ids == IDS + answer.ids
    following = conversation.answer([end, *FIRST])
    expected = reference(make_model(), [*IDS, *answer.ids, end, *FIRST], MODES[1])
    assert following.ids == (expected[: expected.index(end)] if end in expected else expected)


def test_the_bytes_are_those_held_and_those_of_all_tokens():
    a_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, head size, bytes of a float32
    mode = MODES[1]
    answer = Conversation(make_model(), mode, GREEDY).answer(IDS)
    seen = 61 + 19  # nothing has read the last token
    chunks, rest = divmod(seen - 4, 8)
    assert answer.cache_bytes == (4 + (chunks - 1) * 4 + 8 + rest) * a_token
    assert answer.dense_bytes == seen * a_token
    dense = Conversation(make_model(), Vanilla(), GREEDY).answer(IDS)
    assert dense.cache_bytes == dense.dense_bytes == answer.dense_bytes


@pytest.fixture
def interruptible():
    """A shell starts what it runs in the background with SIGINT ignored."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_answer_and_the_conversation_goes_on():
    stop = CtrlC()
    conversation = Conversation(make_model(), MODES[1], GREEDY, stopping_criteria=[stop])
    with stop.on_interrupt():
        answer = conversation.answer(FIRST, Collected(interrupt_after=3))
    assert answer.ids == reference(make_model(), FIRST, MODES[1])[:3]
    with stop.on_interrupt():
        following = conversation.answer(SECOND)
    assert following.ids == reference(make_model(), FIRST + answer.ids + SECOND, MODES[1])
    with stop.on_interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0, but must be a finite number above 0"),
        ({"top_p": 1.5}, "top_p"),
        ({"do_sample": False, "top_k": 3}, "so top_k has no effect"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens 9 is above max_new_tokens 8"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Sampling(**given)
