"""When ranks score RULER's samples together: as they were told, or by what is free on the fullest device."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.errors import InputError
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler import sharing
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.sharing import Share, Sharing
from tests.conftest import make_model
from tests.distributed.ranks import on_ranks

TASK, LENGTH, ROWS = "niah_single_1", 640, 2


@pytest.fixture
def evaluator(tokenizer):
    return RulerEvaluator(tokenizer, {(TASK, LENGTH): [{}] * 5}, batch_size=ROWS)


def sizes(evaluator, model) -> list[int]:
    return [evaluator.cache_bytes(cell, model, Share()) for cell in evaluator.cells]


def test_the_estimate_is_what_the_caches_of_whole_prompts_hold(evaluator):
    model, held = make_model(head_dim=16), []
    for _, length, budget in evaluator.cells:
        mode = evaluator.mode(length, budget)
        with mode.installed(model), torch.no_grad():
            held.append(cache_bytes(Prompt(model, torch.ones(ROWS, LENGTH).long(), [LENGTH] * ROWS, mode).cache))
    assert sizes(evaluator, model) == held
    assert held[0] > held[1] > held[2]


def choose(evaluator, policy: str, size: int, free: list[int | None], checks: int = 1) -> tuple[dict, list[str]]:
    """Size of the group by budget, of the cells that this rank scores with others; and what was logged."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    sharing.log.addHandler(handler)
    sharing.log.setLevel(logging.INFO)
    sharing.free_bytes = lambda device: free[dist.get_rank()]
    model = make_model()
    chosen = Sharing(policy, size, model.config)
    for _ in range(checks):
        shares = chosen.shares(evaluator, model)
    return {cell[2]: (share.group.size, share.rank, share.world_size) for cell, share in shares.items()}, said


def test_auto_shares_where_the_fullest_device_has_no_room(evaluator, tmp_path):
    """Of three caches the dense one does not fit in four fifths of what the second rank has."""
    dense = sizes(evaluator, make_model())[0]
    free = [2 * dense, int(1.2 * dense)]
    (first, said), (second, silence) = on_ranks(2, choose, evaluator, "auto", 2, free, 3, tmp_path=tmp_path)
    assert first == second == {"r1": (2, 0, 1)}
    assert len(said) == 1
    assert said[0].startswith("RULER: caches do not fit in 80% of the 0.0 GiB free, and 2 ranks share the heads.")
    assert "niah_single_1/640/r1 0.0" in said[0]
    assert "r0.5" not in said[0]
    assert silence == []


@pytest.mark.parametrize(
    ("policy", "size", "free", "expected"),
    [
        ("auto", 2, 10**9, {}),
        ("auto", 2, None, {}),
        ("auto", 1, 1, {}),
        ("never", 2, 1, {}),
        ("always", 2, None, dict.fromkeys(["r1", "r0.5", "r0.25"], 2)),
    ],
)
def test_ranks_share_as_they_are_told(evaluator, tmp_path, policy, size, free, expected):
    (first, said), (second, _) = on_ranks(2, choose, evaluator, policy, size, [free] * 2, tmp_path=tmp_path)
    assert {budget: group for budget, (group, *_) in first.items()} == expected
    assert first == second
    assert said == []


def test_as_many_ranks_share_as_the_heads_can_be_dealt_to(evaluator, tmp_path):
    """Four query and two KV heads: three ranks cannot share them, and six only two by two."""
    (tmp_path / "pairs").mkdir()
    (alone, said), *_ = on_ranks(3, choose, evaluator, "auto", 3, [1] * 3, tmp_path=tmp_path)
    assert alone == {}
    assert "nor can ranks share the heads" in said[0]
    pairs = on_ranks(6, choose, evaluator, "auto", 6, [1] * 6, tmp_path=tmp_path / "pairs")
    assert [shares["r1"] for shares, _ in pairs] == [(2, rank // 2, 3) for rank in range(6)]


def test_always_is_refused_where_heads_cannot_be_dealt():
    config = SimpleNamespace(num_attention_heads=28, num_key_value_heads=4)
    with pytest.raises(InputError, match=r"can be shared by 2, 4, 28 ranks, .*size 3 divides by none of them"):
        Sharing("always", 3, config)
    Sharing("auto", 3, config)
