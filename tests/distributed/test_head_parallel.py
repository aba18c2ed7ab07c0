"""Ranks that share the heads of a cache write what one device writes, and hold no more than their part of it."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.head_parallel import HeadParallel, most_ranks, whole_cache_bytes
from lrsa_lightning.errors import InputError
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler.teacher_forcing import teacher_force
from tests.conftest import make_model
from tests.distributed.ranks import on_ranks

MODES = [
    Vanilla(),
    LRSA(lag_size=8, sink_size=4),
    LRSA(lag_size=8, sink_size=4, retention_ratio=0.25, skip_layers=[0]),
    LRSA(lag_size=8, sink_size=4, scorer="random"),
]
LENGTHS = [3, 30, 61, 17, 61, 12]
IDS = torch.randint(0, 97, (6, 61), generator=torch.Generator().manual_seed(0))
NEW = 20


class Logits:
    """Keeps what the head of a model says, for as long as a `with` block."""

    def __init__(self, model):
        self._head, self.found = model.get_output_embeddings(), []

    def __enter__(self) -> list[torch.Tensor]:
        self._hook = self._head.register_forward_hook(lambda module, args, logits: self.found.append(logits))
        return self.found

    def __exit__(self, *_) -> None:
        self._hook.remove()


def write(model, mode, lengths: list[int]) -> dict:
    """Tokens, the logits they were chosen by, and the bytes of the prompt's cache: here, and in all."""
    with torch.no_grad(), mode.installed(model), Logits(model) as logits:
        prompt = Prompt(model, IDS, lengths, mode, 4)
        sizes = cache_bytes(prompt.cache), whole_cache_bytes(prompt.cache)
        return {"tokens": prompt.decode(NEW), "logits": torch.stack(logits), "bytes": sizes}


def rate(model, mode, num_pieces: int | None) -> list[float]:
    prompts = [ids[:length].tolist() for ids, length in zip(IDS, LENGTHS, strict=True)]
    answers = [[1, 2, 3], [5]] * 3
    return [answer.nll for answer in teacher_force(model, mode, prompts, answers, 64, num_pieces)]


def write_together(sizes: list[int]) -> dict:
    model, found = make_model(), {}
    LRSA(lag_size=8, sink_size=4, scorer="random").install(model)
    before = model(IDS, use_cache=False).logits
    for size in sizes:
        group = SequenceGroup.of_world(size)
        for index, mode in enumerate(MODES):
            together = HeadParallel(mode, model.config, group)
            for lengths in (LENGTHS, [61] * 6):
                found[size, index, len(set(lengths))] = write(model, together, lengths)
            found[size, index, "nll"] = rate(model, together, 5)
    assert torch.equal(model(IDS, use_cache=False).logits, before)
    return found


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory) -> list[dict]:
    return on_ranks(4, write_together, [2, 4], tmp_path=tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("index", range(len(MODES)), ids=map(repr, MODES))
@pytest.mark.parametrize("lengths", [LENGTHS, [61] * 6], ids=["ragged", "equal"])
def test_tokens_are_those_of_one_device_and_logits_the_same_bits_on_all_ranks(of_ranks, size, index, lengths):
    """Two KV heads: of four ranks each two hold copies of one."""
    expected = write(make_model(), MODES[index], lengths)
    first, *others = [found[size, index, len(set(lengths))] for found in of_ranks]
    assert torch.equal(first["tokens"], expected["tokens"])
    assert first["logits"].shape == (NEW, 6, 97)
    torch.testing.assert_close(first["logits"], expected["logits"], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(other["logits"], first["logits"]) for other in others)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("index", range(len(MODES)), ids=map(repr, MODES))
def test_each_rank_holds_its_part_of_the_cache(of_ranks, size, index):
    (whole, _) = write(make_model(), MODES[index], LENGTHS)["bytes"]
    for found in of_ranks:
        assert found[size, index, len(set(LENGTHS))]["bytes"] == (whole / 2, whole)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("index", range(len(MODES)), ids=map(repr, MODES))
def test_references_are_rated_through_the_cache_as_under_the_training_mask(of_ranks, size, index):
    expected = rate(make_model(), MODES[index], None)
    for found in of_ranks:
        assert found[size, index, "nll"] == pytest.approx(expected, rel=1e-4)


def end_together() -> list[int]:
    """Collectives in groups whose rows end at different steps, each by its own choice."""
    model, group = make_model(), SequenceGroup.of_world(2)
    mode = HeadParallel(MODES[1], model.config, group)
    free = generate(model, IDS, mode, NEW, lengths=LENGTHS)
    row = dist.get_rank() // 2
    end = int(free[row, 3 + row])
    first = free[row].tolist().index(end)
    alone = generate(model, IDS[row : row + 1, : LENGTHS[row]], mode, NEW, eos_token_id=end)
    assert alone[0].tolist() == free[row, : first + 1].tolist()
    return [first, group.received["all_gather_no_grad"]]


def test_ranks_of_a_group_end_at_the_same_step(tmp_path):
    of_ranks = on_ranks(4, end_together, tmp_path=tmp_path)
    assert of_ranks[0] == of_ranks[1]
    assert of_ranks[2] == of_ranks[3]


def test_heads_that_cannot_be_dealt_are_refused():
    config = SimpleNamespace(num_attention_heads=28, num_key_value_heads=4)
    with pytest.raises(InputError, match="28 query and 4 KV heads can be dealt to 1, 2, 4, 28 ranks, not to 8"):
        HeadParallel(Vanilla(), config, SequenceGroup(0, 8))
    assert [most_ranks(config, size) for size in (1, 2, 3, 6, 8, 12)] == [1, 2, 1, 2, 4, 4]


def test_a_cache_of_all_heads_is_refused():
    model = make_model()
    mode = HeadParallel(MODES[0], model.config, SequenceGroup(0, 2))
    with mode.installed(model), pytest.raises(ValueError, match="need the cache that their mode makes"):
        model(IDS, past_key_values=MODES[0].make_cache(model.config))
