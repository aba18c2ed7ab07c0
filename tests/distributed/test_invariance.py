"""The same samples give the same losses, gradient norms and gradients, whatever degree and kind divide sequences."""

import json

import pytest
import torch

from tests.distributed.fits import STRATEGIES, Fit, fit, strategy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]

MODES = {
    "lrsa": {"model.attention": "LRSA", "model.attention.lag_size": "16", "model.attention.sink_size": "4"},
    "vanilla": {"model.attention": "Vanilla"},
}


@pytest.fixture(scope="module")
def one_process() -> dict[str, Fit]:
    """Runs on one plain process, by their options."""
    return {}


@pytest.fixture
def runs(arguments, tmp_path, one_process):
    """Runs the same options on one process and on several, and compares."""

    def compare(ranks: int, chosen: dict[str, str], mode: str = "lrsa", **options: str) -> Fit:
        changed = {key.replace("__", "."): value for key, value in options.items()}
        base = {key: value for key, value in arguments.items() if not key.startswith("model.attention")}
        base |= {"data.micro_batch_size": "1", "trainer.max_steps": "3", "trainer.gradient_clip_val": "1"}
        base |= MODES[mode] | changed
        keeper = [{"class_path": "tests.distributed.fits.KeepGradients"}]
        base["trainer.callbacks"] = json.dumps(keeper)
        key = json.dumps({mode: changed})
        if key not in one_process:
            one_process[key] = fit(1, {**base, "run_name": "x"}, subfolder(tmp_path, "one"))
        several = fit(ranks, {**base, **chosen}, subfolder(tmp_path, "several"))
        assert_equal(several, one_process[key])
        return several

    return compare


def subfolder(path, name):
    (path / name).mkdir()
    return path / name


def assert_equal(got: Fit, expected: Fit) -> None:
    for name in ("train/loss", "train/grad_norm", "train/tokens", "train/answer_tokens"):
        assert len(expected.curve(name)) == 3
        assert got.curve(name) == pytest.approx(expected.curve(name), rel=5e-6), name
    assert expected.gradients.keys() == got.gradients.keys()
    for name, gradient in expected.gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(got.gradients[name], gradient, rtol=0, atol=5e-6 * max(1.0, scale), msg=name)


@pytest.mark.parametrize("kind", ["ulysses", "context"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_one_group_of_two_ranks(runs, name, kind):
    runs(2, strategy(name, 2, kind))


@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
@pytest.mark.parametrize("kind", ["ulysses", "context"])
def test_two_groups_of_two_ranks(runs, name, kind):
    runs(4, strategy(name, 2, kind), data__micro_batch_size="2")


@pytest.mark.parametrize(("name", "kind"), [("zero2", "ulysses"), ("zero2", "context"), ("fsdp2", "context")])
def test_one_group_of_four_ranks(runs, name, kind):
    runs(4, strategy(name, 4, kind))


@pytest.mark.parametrize("kind", ["ulysses", "context"])
def test_full_attention(runs, kind):
    runs(2, strategy("zero2", 2, kind), "vanilla")


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_recomputed_layers_choose_the_same_tokens(runs, name):
    runs(2, strategy(name, 2, "context"), model__recompute="full")


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_a_head_tied_to_the_embedding(runs, arguments, name):
    config = json.dumps({**json.loads(arguments["model.from_config"]), "tie_word_embeddings": True})
    runs(2, strategy(name, 2, "context"), model__from_config=config)


@pytest.mark.parametrize("name", ["zero3", "fsdp2"])
def test_a_rank_without_label_tokens_calls_the_head_as_often_as_others(runs, name):
    """The label tokens are few and last in the row: one rank of the group has all of them."""
    runs(2, strategy(name, 2, "context"), model__loss_chunk_size="2", data__loss_weighting="sample")


def test_a_length_that_does_not_divide(runs):
    runs(2, strategy("zero2", 2, "ulysses"), data__seq_len="161")


def test_a_step_of_one_micro_batch(runs):
    runs(2, strategy("zero2", 2, "context"), data__micro_batch_size="4")
