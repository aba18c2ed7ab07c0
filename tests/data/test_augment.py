"""The extension's invariants, on drawn pools; and what becomes of samples that are too long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lrsa_lightning.data import tokenization
from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.encoder import NothingToLearn, SampleEncoder
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import make_template
from tests.data.test_tokenization import count_characters

SEQ_LEN = 600


def sample(number, paragraphs, chinese=False):
    text = "第{}号房子的第{}面墙是红色的。" if chinese else "House {} has a wall {} painted red."
    document = "".join(text.format(number, j) + "\n\n" for j in range(paragraphs))
    return Sample(f"f:{number}", document, "哪一个？" if chinese else f"Which one of {number}?", f"Number {number}.")


def encoder(tokenizer, pool, seed=0, delimiter="Document", seq_len=SEQ_LEN, **options):
    return SampleEncoder(
        tokenizer, make_template("base", tokenizer), seq_len, Extender(pool, delimiter, seed), **options
    )


def text_of(tokenizer, row):
    return tokenizer.decode(row.ids[: len(row.ids) - row.num_labels])


POOLS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=8)


@settings(deadline=None, max_examples=40)
@given(drawn=POOLS, seed=st.integers(0, 3))
def test_invariants(tokenizer, drawn, seed):
    # The longest sample of each language has far more text than a row.
    pool = [sample(i, paragraphs, chinese) for i, (paragraphs, chinese) in enumerate(drawn)]
    pool += [sample(98, 80), sample(99, 80, chinese=True)]
    plain = SampleEncoder(tokenizer, make_template("base", tokenizer), SEQ_LEN, None)
    for own in pool[:-2]:
        row, bare = encoder(tokenizer, pool, seed)(own), plain(own)
        text = text_of(tokenizer, row)
        assert list(row.ids[-len(bare.ids) :]) == bare.ids  # question, answer and own document whole, and last
        assert SEQ_LEN * 0.98 <= len(row.ids) - 1 <= SEQ_LEN
        added = text.removesuffix(own.prompt)
        assert added.startswith("Document 1:\n")
        numbers = [int(line[9:-1]) for line in added.splitlines() if line.startswith("Document ")]
        assert numbers == list(range(1, len(numbers) + 1))
        if own.language == "zh":
            assert f"第{own.id[2:]}号" not in added
            assert "House" not in added
        else:
            assert f"House {own.id[2:]} " not in added
            assert "号房子" not in added


def test_the_sections_of_a_sample_depend_on_seed_and_id_not_on_order(tokenizer):
    pool = [sample(i, 3 + i) for i in range(20)]
    first, again, other = (encoder(tokenizer, p, s)(pool[1]).ids for p, s in ((pool, 0), (pool[::-1], 0), (pool, 1)))
    assert first == again
    assert first != other


def test_paragraphs_come_from_longer_samples(tokenizer):
    pool = [sample(i, 2 * i) for i in range(1, 8)]
    text = text_of(tokenizer, encoder(tokenizer, pool)(pool[4]))
    assert {f"House {i} " in text for i in (6, 7)} == {True}
    assert not any(f"House {i} " in text for i in (1, 2, 3, 4))


def test_where_longer_samples_are_used_up_others_are_drawn(tokenizer):
    pool = [sample(i, 9 + (i == 9)) for i in range(10)]
    row = encoder(tokenizer, pool)(pool[0])
    assert len(row.ids) - 1 >= 0.98 * SEQ_LEN
    assert "House 9 " in text_of(tokenizer, row)


def test_nothing_is_drawn_from_a_sample_with_the_same_document(tokenizer):
    pool = [Sample(f"f:{i}", "One text.\n\nAnother text.\n\n", f"Question {i}?", "One.") for i in range(3)]
    assert text_of(tokenizer, encoder(tokenizer, pool)(pool[0])) == pool[0].prompt


def test_the_user_chooses_the_delimiter(tokenizer):
    pool = [sample(i, 8) for i in range(3)]
    assert text_of(tokenizer, encoder(tokenizer, pool, delimiter="Section")(pool[0])).startswith("Section 1:\nHouse")


@pytest.mark.parametrize("too_long", ["drop", "shorten"])
def test_samples_longer_than_a_row(tokenizer, too_long):
    long = sample(1, 100)
    row = encoder(tokenizer, [long], too_long=too_long)(long)
    if too_long == "drop":
        assert row is None
        return
    text = text_of(tokenizer, row)
    assert row.shortened
    assert len(row.ids) == SEQ_LEN + 1
    assert text.startswith(long.document[:200])
    assert text.endswith(long.document[-200:] + long.question)
    assert tokenizer.decode(row.ids[-row.num_labels :]) == " Number 1.<|endoftext|>"


def test_an_answer_that_alone_is_longer_than_a_row_is_left_out(tokenizer):
    long = Sample("f:1", "A text.\n\n", "Which?", "number " * SEQ_LEN)
    assert encoder(tokenizer, [long], too_long="shorten")(long) is None


def test_a_huge_paragraph_is_tokenised_once_and_not_at_each_draw(tokenizer, monkeypatch):
    """One without a place to cut it at, as in a file of 20 MB on one line."""
    monkeypatch.setattr(tokenization, "_HUGE", 2000)
    huge = Sample("f:0", "x" * 40_000, "What?", "That.")
    pool = [huge, *(sample(i, 1) for i in range(1, 30))]
    encode = encoder(tokenizer, pool)
    read = count_characters(monkeypatch, encode._tokenize)
    extended = [encode(own) for own in pool[1:]]
    assert sum("xxxx" in text_of(tokenizer, row) for row in extended) > 20
    assert sum(read) < 3 * len(huge.document)
    monkeypatch.setattr(tokenization, "_HUGE", 10**9)
    assert [encoder(tokenizer, pool)(own).ids for own in pool[1:]] == [row.ids for row in extended]


@pytest.mark.parametrize(
    ("part", "what"), [("answer", "the answer"), ("question", "the text")], ids=["answer", "everything before it"]
)
def test_a_sample_without_tokens_is_named(part, what):
    """Otherwise only its end token, or nothing, would be a label."""
    core = models.BPE(vocab={"h": 0, "<eos>": 1}, merges=[])
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(core), eos_token="<eos>")
    parts = {"document": "", "question": "h", "answer": "h"} | {part: "房"}
    encode = SampleEncoder(bare, make_template("base", bare), SEQ_LEN, None)
    with pytest.raises(NothingToLearn, match=rf"f:7: the tokenizer has no tokens for {what} of this row"):
        encode(Sample("f:7", **parts))
    assert encode(Sample("f:8", "", "h", "h")).num_labels == 2
