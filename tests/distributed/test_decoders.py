"""The usual decoders on two ranks that divide the rows: loss and gradients of one process, also with adapters."""

import pytest
import torch
from torch import distributed as dist
from transformers import CONFIG_MAPPING

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.distributed import SequenceGroup, SPDDPStrategy
from lrsa_lightning.distributed.context import ContextParallel
from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.adapters import LoraSettings, adapted, trained_parameters
from lrsa_lightning.loss import IGNORE_INDEX, linear_cross_entropy
from tests.conftest import TINY_MODEL, make_model
from tests.decoders import DECODERS
from tests.distributed.ranks import on_ranks

KINDS = ("ulysses", "context")
LENGTH, VOCABULARY = 75, 97
MODE = LRSA(lag_size=8, sink_size=3)
CASES = [(name, has_adapters) for name in DECODERS for has_adapters in (False, True)]


def batch() -> dict[str, torch.Tensor]:
    """Two rows, one of them padded; the first tokens of each are no labels."""
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(1, VOCABULARY, (2, 2, LENGTH), generator=generator)
    lengths, positions = torch.tensor([LENGTH, 61]), torch.arange(LENGTH)
    is_label = (positions >= 20) & (positions < lengths[:, None])
    labels = torch.where(is_label, labels, IGNORE_INDEX)
    return {"input_ids": ids, "labels": labels, "position_ids": positions.expand(2, -1), "lengths": lengths}


def model(name: str, has_adapters: bool):
    """A decoder in training with the mode installed, whose adapters change what it computes."""
    made = make_model(name, **DECODERS[name])
    # The experts' grouped product has no float64.
    made.set_experts_implementation("eager")
    if has_adapters:
        made = adapted(made, LoraSettings(r=4).peft_config()).get_base_model()
        for parameter in trained_parameters(made).values():
            parameter.data.normal_(0, 0.3)
    MODE.install(made)
    return made.train()


def loss_and_gradients(made, part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What all trained parameters get, and the loss, by name."""
    decoder = made.get_decoder()
    hidden = decoder(input_ids=part["input_ids"], position_ids=part["position_ids"], use_cache=False)
    loss = linear_cross_entropy(hidden.last_hidden_state, made.get_output_embeddings(), part["labels"])
    loss.backward()
    return {"loss": loss.detach()} | {name: each.grad for name, each in trained_parameters(made).items()}


def on_one_process() -> list[dict[str, torch.Tensor]]:
    return [loss_and_gradients(model(*case), batch()) for case in CASES]


def on_this_rank() -> dict[str, list[dict[str, torch.Tensor]]]:
    """This rank's part of what `on_one_process` returns, by the kind of sequence parallelism."""
    found: dict[str, list] = {}
    for kind in KINDS:
        strategy = SPDDPStrategy(sequence_parallel={"size": dist.get_world_size(), "kind": kind})
        for case in CASES:
            made = model(*case)
            strategy.check_sharding(MODE, made.config, LENGTH)
            strategy.parallelize(MODE, made, LENGTH)
            found.setdefault(kind, []).append(loss_and_gradients(made, strategy.sharding.cut(batch())))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each case of one process beside those of two ranks. The ranks start once for all of them."""
    torch.set_default_dtype(torch.float64)
    try:
        return on_one_process(), on_ranks(2, on_this_rank, tmp_path=tmp_path_factory.mktemp("ranks"))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'adapters' if case[1] else 'weights'}")
def test_two_ranks_have_loss_and_gradients_of_one_process(runs, case, kind):
    expected, ranks = runs[0][CASES.index(case)], [rank[kind][CASES.index(case)] for rank in runs[1]]
    assert all(rank["loss"] > 1 for rank in ranks)  # each has labels
    for name, wanted in expected.items():
        torch.testing.assert_close(sum(rank[name] for rank in ranks), wanted, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
        ("phi3", {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}),
    ],
)
def test_angles_that_depend_on_the_length_are_refused_for_full_attention_too(name, rope):
    """Each rank computed them from its own last position."""
    config = CONFIG_MAPPING[name](**TINY_MODEL, rope_parameters=rope, pad_token_id=0)
    with pytest.raises(InputError, match=f"cannot run with rope_type '{rope['rope_type']}'.*size to 1"):
        SPDDPStrategy(sequence_parallel={"size": 2}).check_sharding(Vanilla(), config, LENGTH)


def test_dropout_of_attention_weights_is_refused_where_ranks_send_what_the_rule_keeps():
    """Full attention under context parallelism ignored it."""
    made, mode = make_model("llama", attention_dropout=0.5).train(), Vanilla()
    mode.install(made)
    ContextParallel(mode, made.config, LENGTH, SequenceGroup(0, 1)).install(made)
    with pytest.raises(InputError, match=r"kind context .* set attention_dropout to 0 .* take ulysses"):
        made(batch()["input_ids"], use_cache=False)
