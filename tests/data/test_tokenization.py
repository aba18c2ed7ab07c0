"""Long texts in pieces give the ids of one piece, or are not cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from lrsa_lightning.data import tokenization
from lrsa_lightning.data.tokenization import LongTokenizer, load_tokenizer
from lrsa_lightning.errors import InputError

# Pre-tokenizer of Qwen2.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = ["The grass is green.\nThe sky is blue.\n\n  And so on\r\n", "今天天气很好。\n我们去公园。\n"] * 20


def make_tokenizer(pre_tokenizer):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def qwen_like():
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    return make_tokenizer(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )


TOKENIZERS = {
    "qwen": qwen_like(),
    "gpt2": make_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    # No pre-tokenization of lines: merges run over line ends.
    "lines joined": make_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
}
LINES = st.lists(st.sampled_from(["The grass", "是。", "It's 1", " ", "\r", "", "-", "\t x", "é", "“好”"]), max_size=40)


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(tokenization, "_PIECE", 8)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(lines=LINES)
def test_pieces_give_the_ids_of_the_text_in_one_piece(name, lines):
    text = "\n".join(lines)
    tokenizer = TOKENIZERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PIECE", 8)
        assert LongTokenizer(tokenizer)(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_texts_are_cut_where_it_is_safe(short_pieces):
    after_line_ends, after_single_ones = tokenization._SAFE_PLACES
    text = "one line\ntwo lines\n\nthree\n4 lines\nfive\n"
    assert tokenization.cut(text, after_line_ends) == ["one line\n", "two lines\n\n", "three\n4 lines\n", "five\n"]
    assert tokenization.cut(text, after_single_ones) == ["one line\n", "two lines\n\nthree\n4 lines\n", "five\n"]
    assert tokenization.cut("今天天气很好我们去。公园里。好", after_line_ends) == ["今天天气很好我们去", "。公园里。好"]
    assert LongTokenizer(TOKENIZERS["qwen"]).safe_places is after_line_ends
    assert LongTokenizer(TOKENIZERS["gpt2"]).safe_places is after_single_ones
    assert LongTokenizer(TOKENIZERS["lines joined"]).safe_places is None


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(lines=LINES, blank=st.sampled_from(["\n", " ", ""]), count=st.integers(-1, 60))
def test_the_first_ids_are_those_of_the_complete_text(name, lines, blank, count):
    text = blank.join(lines)
    tokenizer = TOKENIZERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PIECE", 8)
        patch.setattr(tokenization, "_HUGE", 12)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokenize = LongTokenizer(tokenizer)
        for first in (count, count // 2, count + 5):
            assert tokenize.first(text, first) == whole[: max(first, 0)]


def test_a_long_line_is_cut_between_words_and_only_the_needed_part_is_tokenised(monkeypatch):
    tokenize = LongTokenizer(TOKENIZERS["qwen"])
    text = "The grass is green. " * 5000
    read = count_characters(monkeypatch, tokenize)
    assert len(tokenize.first(text, 100)) == 100
    assert sum(read) < 10_000 < len(text)


def count_characters(monkeypatch, tokenize) -> list[int]:
    """Lengths of the texts that a tokenizer is given from now on."""
    read: list[int] = []
    ids = tokenize._ids
    monkeypatch.setattr(tokenize, "_ids", lambda texts: read.extend(map(len, texts)) or ids(texts))
    return read


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "llama"])
def test_a_folder_without_a_tokenizers_files_is_refused(tmp_path, model_type):
    """transformers 5 makes a tokenizer of no tokens for it."""
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"data\.tokenizer .*(vocabulary is empty.*tokenizer\.json|cannot be loaded)"):
        load_tokenizer(str(tmp_path), "data.tokenizer")


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_a_tokenizer_that_turns_every_text_into_nothing_is_refused(tmp_path, unknown):
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>") if unknown else models.BPE())
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unknown, eos_token="<eos>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="turns every text into nothing"):
        load_tokenizer(str(tmp_path), "data.tokenizer")
