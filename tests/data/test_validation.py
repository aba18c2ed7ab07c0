"""The validation loss: the mean over all rows, whatever the number of ranks that read them."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from lrsa_lightning.attention import Vanilla
from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.data.dataset import pack_rows
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sampler import EveryRowSampler
from lrsa_lightning.loss import IGNORE_INDEX
from lrsa_lightning.module import LongContextModule
from tests.conftest import TINY_MODEL
from tests.data.test_dataset import dataset

SEQ_LEN = 60
# Answers of different lengths, so that tokens and samples weigh differently.
ROWS = [Sample(f"f:{i}", "A text.\n\n", "Which?", "number " * (1 + 5 * i % 7)) for i in range(11)]


@pytest.fixture(scope="module")
def module(tokenizer):
    torch.manual_seed(0)
    module = LongContextModule(Vanilla(), from_config={**TINY_MODEL, "vocab_size": len(tokenizer)}, seq_len=SEQ_LEN)
    module.configure_model()
    return module


def validation_loss(module, data, ranks: int) -> float:
    """What Lightning makes of the steps' logs: their mean over ranks and batches, by batch size."""
    logged = []
    module.log = lambda name, value, batch_size, **_: name == "val/loss" and logged.append((float(value), batch_size))
    module.trainer = SimpleNamespace(world_size=ranks, global_step=0)
    samplers = [EveryRowSampler(data.row_weights, data.row_labels, rank, ranks) for rank in range(ranks)]
    steps = [list(sampler) for sampler in samplers]
    assert {len(own) for own in steps} == {len(samplers[0])}  # the ranks forward equally often
    with torch.no_grad():
        for own in steps:
            for index, batch in enumerate(own):
                module.validation_step(data[batch], index)
    return sum(value * size for value, size in logged) / sum(size for _, size in logged)


def mean_over_rows(module, data, by_sample: bool) -> float:
    """By transformers' own logits, one sample after the other."""
    losses = []
    for row in data.samples:
        ids = torch.tensor(row.ids)
        with torch.no_grad():
            logits = module.model(ids[None, :-1]).logits[0]
        losses.append(cross_entropy(logits[-row.num_labels :], ids[-row.num_labels :], reduction="none"))
    return float(torch.stack([each.mean() for each in losses]).mean() if by_sample else torch.cat(losses).mean())


@pytest.mark.parametrize("weighting", ["token", "sample"])
@pytest.mark.parametrize("num_rows", [1, 2, 11])
def test_any_number_of_ranks_finds_the_mean_over_all_rows(tokenizer, module, weighting, num_rows):
    data = dataset(tokenizer, samples=ROWS[:num_rows], seq_len=SEQ_LEN, weighting=weighting)
    expected = mean_over_rows(module, data, weighting == "sample")
    for ranks in (1, 2, 3, 8):
        assert validation_loss(module, data, ranks) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_any_number_of_ranks_finds_the_same_mean_over_packed_rows(tokenizer, module, weighting):
    lengths = [len(row.ids) - 1 for row in dataset(tokenizer, samples=ROWS, seq_len=SEQ_LEN).samples]
    rows = pack_rows(lengths, SEQ_LEN)
    assert 1 < len(rows) < len(ROWS)
    data = dataset(tokenizer, samples=ROWS, seq_len=SEQ_LEN, weighting=weighting, rows=rows)
    one, *others = (validation_loss(module, data, ranks) for ranks in (1, 2, 3, 8))
    assert others == pytest.approx([one] * 3, rel=1e-6)


def test_a_rank_without_a_row_reads_padding_without_labels(tokenizer):
    data = dataset(tokenizer, samples=ROWS[:1], seq_len=SEQ_LEN)
    (first,), (second,) = (EveryRowSampler(data.row_weights, data.row_labels, rank, 2) for rank in (0, 1))
    assert (first.indices, second.indices) == ((0,), ())
    assert (first.num_tokens, first.max_labels_per_rank) == (second.num_tokens, second.max_labels_per_rank)
    own, other = data[first], data[second]
    assert {k: v.shape for k, v in own.items() if hasattr(v, "shape")} == {
        k: v.shape for k, v in other.items() if hasattr(v, "shape")
    }
    assert (other["labels"] == IGNORE_INDEX).all()
    assert (other["weights"] == 0).all()
    assert other["lengths"] == 0
    assert (other["input_ids"] == tokenizer.pad_token_id).all()


def test_each_validation_begins_with_the_first_row(train_file, tokenizer_dir, tmp_path):
    """Also one after one that was cut short, such as by limit_val_batches."""
    module = LongContextDataModule(
        str(train_file),
        str(train_file),
        tokenizer=str(tokenizer_dir),
        seq_len=160,
        num_workers=0,
        prepare_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )
    module.prepare_data()
    module.setup("validate")
    loader = module.val_dataloader()
    first = next(iter(loader))["input_ids"]
    assert torch.equal(next(iter(loader))["input_ids"], first)
