"""The order of samples: the same whatever the number of ranks, complete, different in each epoch."""

import pytest
from torch.utils.data import DistributedSampler

from lrsa_lightning.data.sampler import EveryRowSampler, GlobalBatchSampler, accumulation_steps
from lrsa_lightning.errors import InputError

WEIGHTS = list(range(1, 31))
NUM_LABELS = [3 * weight for weight in WEIGHTS]


def global_batches(data_parallel_size: int, micro_batch_size: int, epoch: int = 0) -> list[set[int]]:
    """What all ranks read together in each optimizer step."""
    ranks = []
    for rank in range(data_parallel_size):
        sampler = GlobalBatchSampler(WEIGHTS, NUM_LABELS, 8, micro_batch_size, rank, data_parallel_size, seed=3)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    steps = 8 // (micro_batch_size * data_parallel_size)
    batches = []
    for start in range(0, len(ranks[0]), steps):
        parts = [batch for rank in ranks for batch in rank[start : start + steps]]
        indices = [index for part in parts for index in part.indices]
        assert len(set(indices)) == 8
        for same_time in zip(*(rank[start : start + steps] for rank in ranks), strict=True):
            most = max(sum(NUM_LABELS[index] for index in part.indices) for part in same_time)
            assert {part.max_labels_per_rank for part in same_time} == {most}
        assert {part.num_tokens for part in parts} == {sum(WEIGHTS[index] for index in indices)}
        batches.append(set(indices))
    return batches


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_global_batches_do_not_depend_on_ranks_and_micro_batches(ranks, micro):
    assert global_batches(ranks, micro) == global_batches(1, 2)


def test_an_epoch_holds_each_sample_at_most_once_and_leaves_out_the_rest():
    batches = global_batches(1, 1)
    assert len(batches) == 3
    assert len(set.union(*batches)) == 24


def test_epochs_differ_and_repeat_exactly():
    assert global_batches(1, 1, epoch=1) != global_batches(1, 1, epoch=0)
    assert global_batches(1, 1, epoch=1) == global_batches(2, 2, epoch=1)


def test_the_order_depends_on_the_seed():
    orders = [list(GlobalBatchSampler(WEIGHTS, NUM_LABELS, 8, 2, 0, 1, seed=seed)) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]
    plain = GlobalBatchSampler(WEIGHTS, NUM_LABELS, 8, 2, 0, 1, seed=3, shuffle=False)
    assert [index for batch in plain for index in batch.indices] == list(range(24))


def test_lightning_does_not_replace_the_sampler():
    """It would deal this rank's micro-batches out once more."""
    assert isinstance(GlobalBatchSampler(WEIGHTS, NUM_LABELS, 8, 2, 1, 2, seed=3), DistributedSampler)
    assert isinstance(EveryRowSampler(WEIGHTS, NUM_LABELS, 1, 2), DistributedSampler)


@pytest.mark.parametrize("start", [0, 8, 12, 20])
def test_an_order_goes_on_from_any_start(start):
    whole = GlobalBatchSampler(WEIGHTS, NUM_LABELS, 8, 2, 0, 1, seed=3)
    rest = GlobalBatchSampler(WEIGHTS, NUM_LABELS, 8, 2, 0, 1, seed=3)
    rest.start = start
    assert list(rest) == list(whole)[start // 2 :]


def test_accumulation_follows_from_the_batch_sizes():
    assert accumulation_steps(16, 1, 4) == 4
    with pytest.raises(InputError, match="not a multiple of 6"):
        accumulation_steps(16, 2, 3)


def test_fewer_samples_than_a_global_batch_is_an_error():
    with pytest.raises(InputError, match="30 samples are fewer"):
        GlobalBatchSampler(WEIGHTS, NUM_LABELS, 32, 1, 0, 1, seed=0)
