"""The classes of tokens, counted by hand."""

from lrsa_lightning.diagnosis import CLASSES, TextSource
from lrsa_lightning.diagnosis.marks import Punctuation, needle_spans
from tests.conftest import longalign_row, write_jsonl

RULER_ROW = {
    "id": "niah-0",
    "input": "Memorize it.\nThe grass is green. The special number for ant is: 1234567. So.\n11234567 is no needle.\n"
    "What is the number for ant?",
    "answer_prefix": " The number is",
    "outputs": ["1234567"],
    "answer": " 1234567",
}


def marked(tokenizer, row, tmp_path, template="base", **keys):
    """The text of a row, and its tokens' own texts by class, joined."""
    file = str(write_jsonl(tmp_path / "x.jsonl", [row]))
    (text,) = TextSource(tokenizer, template, 1000, **keys).texts(file)
    parts = dict.fromkeys(CLASSES, "")
    for token, own in zip(text.ids, text.classes, strict=True):
        parts[CLASSES[own]] += tokenizer.decode([token])
    return text, parts


def test_a_ruler_sample_is_marked_by_its_needle_and_its_question(tokenizer, tmp_path):
    text, parts = marked(tokenizer, RULER_ROW, tmp_path)
    assert tokenizer.decode(text.ids) == RULER_ROW["input"] + RULER_ROW["answer_prefix"] + RULER_ROW["answer"]
    assert parts["needle"].strip() == "The special number for ant is: 1234567."
    assert parts["question"] == "What is the number for ant? The number is"
    assert parts["answer"] == " 1234567"
    assert "".join(parts["document"].split()) == "MemorizeitThegrassisgreenSo11234567isnoneedle"
    assert "".join(parts["punctuation"].split()) == "...."
    assert text.num_answer == len(tokenizer(" 1234567")["input_ids"])


def test_the_question_of_a_chat_template_is_no_marker(tokenizer, tmp_path):
    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    _, parts = marked(tokenizer, RULER_ROW | {"input": before + RULER_ROW["input"] + after}, tmp_path, "chatml")
    assert parts["question"].startswith("What is the number for ant?")
    assert parts["needle"].strip() == "The special number for ant is: 1234567."


def test_a_chat_row_has_document_question_and_answer(tokenizer, tmp_path):
    row = longalign_row("It is red, and blue.\n\nThe end!", "Which colour?", "Red.")
    text, parts = marked(tokenizer, row, tmp_path)
    assert "".join(parts["document"].split()) == "ItisredandblueTheend"
    assert "".join(parts["punctuation"].split()) == ",.!"
    assert (parts["question"], parts["needle"]) == ("Which colour?", "")
    assert parts["answer"] == " Red.<|endoftext|>"
    assert text.classes[-text.num_answer :] == [CLASSES.index("answer")] * text.num_answer


def test_too_long_texts_are_none_and_short_rows_are_filled_by_choice(tokenizer, tmp_path):
    rows = [longalign_row("\n\n".join(f"Red {i} {j}." for j in range(20)), "Which?", "Red.") for i in range(4)]
    file = str(write_jsonl(tmp_path / "x.jsonl", rows))
    assert [*TextSource(tokenizer, "base", 40).texts(file)] == [None] * 4
    plain = [len(text.ids) for text in TextSource(tokenizer, "base", 400).texts(file)]
    filled = [len(text.ids) for text in TextSource(tokenizer, "base", 400, extend=True).texts(file)]
    assert max(plain) < 300 < min(filled) <= max(filled) <= 400
    ruler = str(write_jsonl(tmp_path / "y.jsonl", [RULER_ROW]))
    assert [*TextSource(tokenizer, "base", 20).texts(ruler)] == [None]


def test_needles_are_sentences_or_lines_with_the_word():
    text = "A 12. Is b 12? no\nc 12\n112 and 12-13, d"
    assert [text[start:end] for start, end in needle_spans(text, ["12"])] == ["A 12.", "Is b 12?", "c 12",
                                                                             "112 and 12-13, d"]  # fmt: skip
    assert needle_spans("nothing", ["12"]) == []


def test_a_part_of_a_character_is_no_punctuation(tokenizer):
    """A byte-level token may be a third of a character."""
    is_punctuation = Punctuation(tokenizer)
    ids = tokenizer("是。!")["input_ids"]
    assert [is_punctuation(token) for token in ids] == [False] * (len(ids) - 1) + [True]
