"""From samples to micro-batches: templates, masking, shift, padding, extension."""

import pytest
import torch

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.dataset import LongContextDataset, SampleEncoder
from lrsa_lightning.data.longalign import Sample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.data.template import make_template
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import IGNORE_INDEX
from tests.conftest import longalign_row, write_jsonl

SEQ_LEN = 200
SAMPLES = [
    Sample(f"f:{i}", "\n\n".join(f"House {i}.{j} is painted." for j in range(3)) + "\n\nWhich?", f"Number {i}.")
    for i in range(6)
]


def dataset(tokenizer, template="base", extend=False, samples=SAMPLES, seq_len=SEQ_LEN, seed=0):
    extender = Extender(samples, "Document", seed) if extend else None
    encode = SampleEncoder(tokenizer, make_template(template, tokenizer), seq_len, extender)
    return LongContextDataset.prepare(samples, encode, seq_len, tokenizer.pad_token_id)


def row(data, index):
    batch = data[MicroBatch((index,), 1)]
    return batch["input_ids"][0], batch["labels"][0]


def test_batch_shapes_and_position_ids(tokenizer):
    batch = dataset(tokenizer)[MicroBatch((0, 3), 17)]
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (2, SEQ_LEN),
        "labels": (2, SEQ_LEN),
        "position_ids": (2, SEQ_LEN),
        "num_tokens": (),
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
    learned = labels != IGNORE_INDEX
    expected_prompt = prompt.format(prompt=SAMPLES[2].prompt)
    expected_answer = answer.format(answer=SAMPLES[2].answer)
    assert tokenizer.decode(labels[learned]) == expected_answer
    assert data.num_answer_tokens[2] == learned.sum()
    # Shifted: the first learned position reads the prompt's last token.
    first = int(learned.nonzero()[0])
    assert tokenizer.decode(ids[: first + 1]) == expected_prompt
    assert (ids[first + int(learned.sum()) :] == tokenizer.pad_token_id).all()


def test_extension_fills_up_and_keeps_the_own_text_last(tokenizer):
    plain, extended = dataset(tokenizer), dataset(tokenizer, extend=True)
    for index, sample in enumerate(SAMPLES):
        ids, labels = row(extended, index)
        answer = labels[labels != IGNORE_INDEX]
        assert torch.equal(answer, row(plain, index)[1][row(plain, index)[1] != IGNORE_INDEX])
        first = int((labels != IGNORE_INDEX).nonzero()[0])
        text = tokenizer.decode(ids[: first + 1])
        assert text.startswith("Document 1:\nHouse ")
        assert text.endswith("\n\n" + sample.prompt)
        sections = text.removesuffix(sample.prompt)
        assert f"House {sample.id[2:]}." not in sections
        longest = max(len(tokenizer(f"Document 9:\n{p}\n\n")["input_ids"]) for s in SAMPLES for p in s.paragraphs())
        assert SEQ_LEN + 1 - (first + 1 + len(answer)) < longest


def test_extension_depends_on_seed_and_sample_only(tokenizer):
    first, again, other = (row(dataset(tokenizer, extend=True, seed=s), 1)[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_row_may_be_exactly_full(tokenizer):
    length = len(tokenizer(SAMPLES[0].prompt)["input_ids"]) + len(tokenizer(" Number 0.<|endoftext|>")["input_ids"])
    ids, labels = row(dataset(tokenizer, samples=SAMPLES[:1], seq_len=length - 1), 0)
    assert labels[-1] == tokenizer.eos_token_id
    assert ids[-1] != tokenizer.pad_token_id


def test_samples_that_are_too_long_are_left_out_and_counted(tokenizer, caplog):
    long = Sample("f:9", "word " * 500 + "\n\nWhich?", "None.")
    data = dataset(tokenizer, samples=[*SAMPLES, long])
    assert len(data) == len(SAMPLES)
    assert "1 of 7 samples" in caplog.text


def test_nothing_that_fits_is_an_error(tokenizer):
    with pytest.raises(InputError, match="seq_len 8"):
        dataset(tokenizer, seq_len=8)


def test_chatml_without_a_chat_template_is_an_error(tokenizer, tokenizer_dir):
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tokenizer_dir)
    bare.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        make_template("chatml", bare)


def test_rows_of_one_file_are_told_apart(tmp_path, tokenizer):
    same = [longalign_row("One text.\n\nAnother text.", "Which?", "One.")] * 2
    from lrsa_lightning.data.longalign import read_longalign

    samples = list(read_longalign(write_jsonl(tmp_path / "same.jsonl", same)))
    # Both samples have the same document, so neither lends the other a section.
    ids, labels = row(dataset(tokenizer, extend=True, samples=samples), 0)
    first = int((labels != IGNORE_INDEX).nonzero()[0])
    assert tokenizer.decode(ids[: first + 1]) == samples[0].prompt
