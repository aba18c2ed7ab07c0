"""From samples to micro-batches: templates, masking, shift, padding, weights."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.data.dataset import LongContextDataset, pack_rows
from lrsa_lightning.data.encoder import SampleEncoder
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.data.template import make_template
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import IGNORE_INDEX
from tests.conftest import CHAT_TEMPLATE

SEQ_LEN = 200
SAMPLES = [
    Sample(f"f:{i}", "\n\n".join(f"House {i}.{j} is painted." for j in range(3)) + "\n\n", "Which?", f"Number {i}.")
    for i in range(6)
]


def dataset(tokenizer, template="base", samples=SAMPLES, seq_len=SEQ_LEN, **options):
    encode = SampleEncoder(tokenizer, make_template(template, tokenizer), seq_len, None)
    rows = [encode(sample) for sample in samples]
    return LongContextDataset(rows, [row.num_labels for row in rows], seq_len, tokenizer.pad_token_id, **options)


def row(data, index):
    batch = data[MicroBatch((index,), 1, 1)]
    return batch["input_ids"][0], batch["labels"][0]


@pytest.mark.parametrize(("device", "num_pinned"), [("cuda", 7), ("cpu", 0)])
def test_batches_are_pinned_for_a_gpu(tokenizer, monkeypatch, device, num_pinned):
    """The host would wait for a copy from other memory."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda z: pinned.append(z) or z.clone())
    batch = dataset(tokenizer, rows=[[0, 1]])[MicroBatch((0,), 17, 5)]
    module = LongContextDataModule("train.jsonl")
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    moved = module.on_before_batch_transfer(batch, 0)
    assert len(pinned) == num_pinned
    assert moved.keys() == batch.keys() | {"label_positions"}
    assert moved["cu_seqlens"] == batch["cu_seqlens"]
    assert all((moved[name] is batch[name]) == (device == "cpu") for name in ("input_ids", "labels", "num_tokens"))
    assert module.on_before_batch_transfer({}, 0) == {}


def test_batch_shapes_and_position_ids(tokenizer):
    batch = dataset(tokenizer)[MicroBatch((0, 3), 17, 5)]
    assert batch.pop("max_labels_per_rank") == 5
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (2, SEQ_LEN),
        "labels": (2, SEQ_LEN),
        "position_ids": (2, SEQ_LEN),
        "weights": (2, SEQ_LEN),
        "num_tokens": (),
        "lengths": (2,),
    }
    assert batch["num_tokens"] == 17
    assert torch.equal(batch["position_ids"][1], torch.arange(SEQ_LEN))


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        ("base", "{prompt}", " {answer}<|endoftext|>"),
        ("chatml", "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", "{answer}<|im_end|>"),
    ],
)
def test_template_and_mask(tokenizer, template, prompt, answer):
    data = dataset(tokenizer, template)
    ids, labels = row(data, 2)
    has_label = labels != IGNORE_INDEX
    expected_prompt = prompt.format(prompt=SAMPLES[2].prompt)
    expected_answer = answer.format(answer=SAMPLES[2].answer)
    assert tokenizer.decode(labels[has_label]) == expected_answer
    assert data.row_weights[2] == has_label.sum()
    # Shifted: the first position with a label reads the prompt's last token.
    first = int(has_label.nonzero()[0])
    assert tokenizer.decode(ids[: first + 1]) == expected_prompt
    assert (ids[first + int(has_label.sum()) :] == tokenizer.pad_token_id).all()


def test_a_row_may_be_exactly_full(tokenizer):
    length = len(tokenizer(SAMPLES[0].prompt)["input_ids"]) + len(tokenizer(" Number 0.<|endoftext|>")["input_ids"])
    ids, labels = row(dataset(tokenizer, samples=SAMPLES[:1], seq_len=length - 1), 0)
    assert labels[-1] == tokenizer.eos_token_id
    assert ids[-1] != tokenizer.pad_token_id


def test_chatml_without_a_chat_template_is_an_error(tokenizer, tokenizer_dir):
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tokenizer_dir)
    bare.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        make_template("chatml", bare)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("m['content']", "(m['content'] | upper)"),
        CHAT_TEMPLATE.replace("m['content']", "m['content'] + m['content']"),
        "{{ raise_exception('no roles but system') }}",
        "{{ messages[0]['content'] ",
        "always the same",
    ],
)
def test_a_chat_template_that_changes_the_texts_is_an_error(tokenizer_dir, template):
    from transformers import AutoTokenizer

    odd = AutoTokenizer.from_pretrained(tokenizer_dir)
    odd.chat_template = template
    with pytest.raises(InputError, match="chat template cannot be used"):
        make_template("chatml", odd)


def test_weights_by_token_and_by_sample(tokenizer):
    by_token, by_sample = (dataset(tokenizer, weighting=w)[MicroBatch((0, 3), 1, 1)] for w in ("token", "sample"))
    has_label = by_token["labels"] != IGNORE_INDEX
    assert torch.equal(by_token["weights"], has_label.float())
    assert torch.equal(by_sample["weights"] > 0, has_label)
    torch.testing.assert_close(by_sample["weights"].sum(dim=1), torch.ones(2))
    assert dataset(tokenizer, weighting="sample").row_weights == [1] * len(SAMPLES)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_packing_takes_each_sample_once_and_fills_rows(lengths):
    rows = pack_rows(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert max(filled) <= 50
    # No two rows would fit into one: at most one is less than half full.
    assert sum(2 * tokens <= 50 for tokens in filled) <= 1
    assert rows == pack_rows(lengths, 50)


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_a_packed_row_holds_its_samples_one_after_the_other(tokenizer, weighting):
    apart = dataset(tokenizer, weighting=weighting)
    packed = dataset(tokenizer, weighting=weighting, rows=[[0, 2], [5]])
    assert packed.row_weights == [apart.row_weights[0] + apart.row_weights[2], apart.row_weights[5]]
    batch, singles = packed[MicroBatch((0, 1), 1, 1)], apart[MicroBatch((0, 2, 5), 1, 1)]
    lengths = [int((labels != IGNORE_INDEX).nonzero().max()) + 1 for labels in singles["labels"]]
    for name in ("input_ids", "labels", "position_ids", "weights"):
        first, second, third = singles[name]
        assert torch.equal(batch[name][0, : lengths[0]], first[: lengths[0]])
        assert torch.equal(batch[name][0, lengths[0] :], second[: SEQ_LEN - lengths[0]])
        assert torch.equal(batch[name][1], third)
    assert batch["cu_seqlens"] == [[0, lengths[0], SEQ_LEN], [0, SEQ_LEN]]


def test_boundaries_of_packed_rows_are_where_positions_restart(tokenizer):
    data = dataset(tokenizer, seq_len=300, rows=[[0, 1, 2], [3], [4, 5]])
    batch = data[MicroBatch((0, 1, 2), 1, 1)]
    starts = [(positions == 0).nonzero().flatten().tolist() for positions in batch["position_ids"]]
    assert batch["cu_seqlens"] == [[*row, 300] for row in starts]
    assert [len(row) for row in starts] == [3, 1, 2]
    assert data[MicroBatch((), 1, 1)]["cu_seqlens"] == [[0, 300]]
