"""The attention of a step under an elastic mode: that of a fixed mode with the step's ratio, in every execution."""

import copy
import inspect
from math import inf

import pytest
import torch
from transformers import Qwen2Config

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention import flex
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.saved_mode import save_mode, saved_mode
from lrsa_lightning.errors import InputError
from lrsa_lightning.flops import DecoderFlops
from lrsa_lightning.recompute.policies import set_policies
from tests.conftest import make_model

RATIOS = [1.0, 0.5, 0.25]
SIZES = {"lag_size": 16, "sink_size": 4}
ELASTIC = {**SIZES, "retention_ratio": RATIOS}
IDS = torch.randint(0, 97, (2, 100), generator=torch.Generator().manual_seed(3))
PACKED = [[0, 70, 100], [0, 100]]
STEPS = 8  # of seed 0: all three ratios are among them


def hidden_of(mode, model, cu_seqlens=None) -> torch.Tensor:
    positions = torch.arange(100).expand(2, -1)
    if cu_seqlens is not None:
        positions = torch.cat([torch.arange(70), torch.arange(30), torch.arange(100)]).view(2, 100)
    rows = mode.row_arguments(cu_seqlens, IDS.device)
    return model.get_decoder()(input_ids=IDS, position_ids=positions, use_cache=False, **rows).last_hidden_state


def outcome(mode, model, cu_seqlens=None) -> list[torch.Tensor]:
    """Hidden states and all gradients."""
    model.zero_grad()
    hidden = hidden_of(mode, model, cu_seqlens)
    hidden.square().sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def ratio_of(step_mode) -> float:
    return step_mode.step_metrics()["train/retention_ratio"]


def fixed_outcome(ratio: float, model, cu_seqlens=None, **arguments) -> list[torch.Tensor]:
    mode = LRSA(**SIZES, retention_ratio=ratio, **arguments)
    with mode.installed(model):
        return outcome(mode, model, cu_seqlens)


@pytest.mark.parametrize("cu_seqlens", [None, PACKED], ids=["rows", "packed"])
@pytest.mark.parametrize("backend", ["auto", "naive"])
def test_a_step_is_that_of_a_fixed_mode_with_its_ratio(backend, cu_seqlens):
    model, mode = make_model().train(), LRSA(**ELASTIC, backend=backend)
    mode.for_length(100).install(model)
    expected = {ratio: fixed_outcome(ratio, model, cu_seqlens, backend=backend) for ratio in RATIOS}
    assert not equal(expected[0.5], expected[0.25])
    seen = set()
    for step in range(STEPS):
        ratio = ratio_of(mode.begin_step(step, inf, 0))
        assert equal(outcome(mode, model, cu_seqlens), expected[ratio])
        mode.end_step()
        seen.add(ratio)
    assert seen == {*RATIOS}


def test_the_largest_ratio_is_full_attention():
    model, mode = make_model().double(), LRSA(**ELASTIC, serving_ratio=1.0)
    mode.install(model)
    got = hidden_of(mode, model)
    with Vanilla().installed(model):
        torch.testing.assert_close(got, hidden_of(Vanilla(), model), rtol=0, atol=1e-12)


def test_a_step_with_the_largest_ratio_ranks_nothing(monkeypatch):
    model, mode, scored = make_model(), LRSA(**ELASTIC), []
    mode.install(model)
    score = LagRule.score
    monkeypatch.setattr(LagRule, "score", lambda rule, *args: scored.append(rule.kept) or score(rule, *args))
    for step in range(STEPS):
        mode.begin_step(step, inf, 0)
        hidden_of(mode, model)
    assert {*scored} == {8, 4}


def test_outside_of_steps_it_is_the_serving_ratio():
    model, mode = make_model(), LRSA(**ELASTIC)
    mode.install(model)
    step = next(step for step in range(STEPS) if ratio_of(mode.begin_step(step, inf, 0)) == 1.0)
    mode.begin_step(step, inf, 0)
    mode.end_step()
    assert equal(outcome(mode, model), fixed_outcome(0.25, model))
    answers = [generate(model, IDS[:1], m, max_new_tokens=8) for m in (mode, LRSA(**SIZES, retention_ratio=0.25))]
    assert torch.equal(*answers)
    assert mode.make_cache(model.config)._rules == [LagRule(4, 16, 4)] * 2


@pytest.mark.parametrize("policy", ["selective", "attention", "full", "offload"])
def test_what_is_computed_again_has_the_ratio_of_its_step(policy):
    model, mode = make_model().train(), LRSA(**ELASTIC)
    mode.install(model)
    expected = {ratio: fixed_outcome(ratio, model) for ratio in RATIOS}
    set_policies(model.get_decoder().layers, [policy] * 2)
    for step in range(STEPS):
        ratio = ratio_of(mode.begin_step(step, inf, 0))
        assert equal(outcome(mode, model), expected[ratio])
        mode.end_step()


def test_a_shared_head_follows_the_mode_and_a_steps_mode_stays():
    mode = LRSA(**ELASTIC)
    share = mode.for_heads(1)
    steps = [mode.begin_step(step, inf, 0) for step in range(STEPS)]
    assert share.rule(0) == LagRule(4, 16, int(16 * ratio_of(steps[-1])), first_kv_head=1)
    mode.end_step()
    assert share.rule(0).kept == 4
    for step, of_step in enumerate(steps):
        assert ratio_of(of_step) == ratio_of(mode.begin_step(step, inf, 0))


def test_a_fixed_mode_is_the_same_in_all_steps():
    for mode in (LRSA(**SIZES), Vanilla()):
        assert mode.begin_step(3, inf, 0) is mode
        assert mode.step_metrics() == {}
        assert mode.phases() == [(mode, 1.0)]
        assert not mode.needs_total_steps


def test_two_models_in_a_process_have_steps_of_their_own():
    models, modes = [make_model(), make_model()], [LRSA(**ELASTIC), LRSA(**ELASTIC)]
    for mode, model in zip(modes, models, strict=True):
        mode.install(model)
    steps = {ratio_of(modes[0].begin_step(step, inf, 0)): step for step in range(STEPS)}
    modes[0].begin_step(steps[1.0], inf, 0)
    modes[1].begin_step(steps[0.5], inf, 0)
    assert equal(outcome(modes[0], models[0]), fixed_outcome(1.0, models[0]))
    assert equal(outcome(modes[1], models[1]), fixed_outcome(0.5, models[1]))


def test_the_operations_of_a_step_are_those_of_its_ratio():
    """By hand: chunks 0 and 1 are causal. A query of chunk 2 sees the sink, M, chunk 1, and its own up to itself."""
    decoder, mode = DecoderFlops(Qwen2Config(num_hidden_layers=2), token=5, pair=7, label_token=11), LRSA(**ELASTIC)
    length = 4 + 3 * 16  # the sink and three chunks
    causal, last_chunk = 36 * 37 // 2, 16 * 17 // 2
    for step in range(STEPS):
        of_step = mode.begin_step(step, inf, 0)
        mode.end_step()
        pairs = causal + 16 * (4 + int(16 * ratio_of(of_step)) + 16) + last_chunk
        expected = 3 * (5 * length + 11 * 3) + 3 * 7 * pairs * 2
        assert decoder.training({length: 1}, 3, of_step).real == expected


def test_the_lists_of_tiles_are_made_once_for_each_ratio(monkeypatch):
    made, tiles = [], KVLayout.tiles
    monkeypatch.setattr(
        KVLayout, "tiles", lambda layout, *args, **kw: made.append(layout) or tiles(layout, *args, **kw)
    )
    flex.block_mask.cache_clear()
    mode = LRSA(lag_size=64, sink_size=4, retention_ratio=[0.75, 0.5, 0.25])
    for step in range(3 * STEPS):
        mode.begin_step(step, inf, 0)
        for layer in range(4):
            layout = flex._training_layout(1000, mode.rule(layer), "TRITON", True)
            flex.block_mask(layout, torch.device("cpu"))
    assert len(made) == 3


def test_a_compiled_model_has_the_ratio_of_each_step():
    torch._dynamo.reset()
    model, mode = make_model(num_hidden_layers=1).double(), LRSA(**ELASTIC)
    mode.install(model)
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(STEPS):
        mode.begin_step(step, inf, 0)
        got, expected = (f(IDS, use_cache=False).logits for f in (forward, model))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        mode.end_step()
    got = forward(IDS, use_cache=False).logits
    with LRSA(**SIZES, retention_ratio=0.25).installed(model):
        torch.testing.assert_close(got, model(IDS, use_cache=False).logits, rtol=0, atol=1e-10)


def test_config_json_names_one_ratio_and_those_of_training():
    config = make_model().config
    save_mode(config, LRSA(**ELASTIC, serving_ratio=0.5))
    assert config.lrsa["retention_ratio"] == 0.5
    assert config.lrsa["trained_ratios"] == RATIOS
    mode = saved_mode(config)
    assert (mode.retention_ratio, mode.rule(0).kept) == (0.5, 8)
    assert mode.settings() == config.lrsa  # what is saved again still says it
    assert "trained_ratios" not in LRSA(**SIZES).settings()
    config.lrsa = {**config.lrsa, "trained_ratios": [0.5, 0.5]}
    with pytest.raises(InputError, match=r"config\.json: lrsa: LRSA: trained_ratios \[0.5, 0.5\] holds a ratio twice"):
        saved_mode(config)


@pytest.mark.parametrize("arguments", [SIZES, ELASTIC, {**ELASTIC, "retention_schedule": "curriculum"}])
def test_its_attributes_make_the_same_mode(arguments):
    mode = LRSA(**arguments)
    again = LRSA(**{name: getattr(mode, name) for name in inspect.signature(LRSA).parameters})
    assert repr(again) == repr(mode)
    assert again.settings() == mode.settings()


def test_its_text_says_the_schedule():
    assert "retention_ratio=(1.0, 0.5, 0.25)" in repr(LRSA(**ELASTIC))
    assert "retention_schedule='random', serving_ratio=0.25" in repr(LRSA(**ELASTIC))
    assert "retention_" not in repr(LRSA(**SIZES)).replace("retention_ratio=0.5", "")


def test_a_copy_of_a_model_has_a_ratio_of_its_own():
    mode = LRSA(**ELASTIC)
    other = copy.deepcopy(mode)
    mode.begin_step(next(n for n in range(STEPS) if ratio_of(mode.begin_step(n, inf, 0)) == 1.0), inf, 0)
    assert other.rule(0).kept == 4
