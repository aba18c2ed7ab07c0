"""Plain text to go on training with: each of its tokens is learned once, at any length; no template is around it."""

import pytest
import torch

from lrsa_lightning.cli import main
from lrsa_lightning.data.dataset import LongContextDataset
from lrsa_lightning.data.encoder import NothingToLearn, SampleEncoder
from lrsa_lightning.data.prepared import prepare
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.data.template import TemplateOfEach
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import IGNORE_INDEX
from tests.conftest import sample_rows, write_jsonl
from tests.runs import command, kept_curve, losses

SEQ_LEN = 50
TEXTS = ["One short text.", "", "Another text, in 中文 and English.\n\n" * 9]


def plain(text: str) -> Sample:
    return Sample("f:1", text, "", "", kind="text")


def encoder(tokenizer, seq_len: int = SEQ_LEN, choice: str = "auto") -> SampleEncoder:
    return SampleEncoder(tokenizer, TemplateOfEach(choice, tokenizer), seq_len, None)


def ids_of(tokenizer, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def labels_and_inputs(prepared, rows=None) -> tuple[list[int], list[int]]:
    """What the batches hold, row after row: the labels, and the inputs that they follow."""
    dataset = LongContextDataset(prepared, prepared.num_labels, SEQ_LEN, 0, rows=rows)
    batch = dataset[MicroBatch(range(len(dataset)), 1, 1)]
    at = batch["labels"] != IGNORE_INDEX
    inside = torch.arange(SEQ_LEN) < batch["lengths"][:, None]
    assert at.equal(inside)
    return batch["labels"][at].tolist(), batch["input_ids"][at].tolist()


@pytest.mark.parametrize("choice", ["auto", "chatml"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_each_token_is_a_label_once_however_long_the_text_is(tokenizer, tmp_path, choice, extra):
    """With `extra` tokens more than complete rows, counting the first token, which is no label."""
    text = "number " * 200
    text = tokenizer.decode(tokenizer(text).input_ids[: 3 * SEQ_LEN + extra])
    ids = ids_of(tokenizer, text)
    prepared = prepare(tmp_path / "a", [plain(text)], encoder(tokenizer, choice=choice).rows)
    assert labels_and_inputs(prepared) == (ids[1:], ids[:-1])
    assert len(prepared) == -(-(len(ids) - 1) // SEQ_LEN)


def test_short_texts_share_a_row_where_rows_are_packed(tokenizer, tmp_path):
    both = [TEXTS[0], "Two."]
    prepared = prepare(tmp_path / "a", [*map(plain, both)], encoder(tokenizer).rows)
    labels, _ = labels_and_inputs(prepared, [[0, 1]])
    assert labels == [token for text in both for token in ids_of(tokenizer, text)[1:]]


def test_a_text_that_is_longer_than_a_row_is_no_single_row(tokenizer):
    assert encoder(tokenizer)(plain(TEXTS[2])) is None
    assert len(encoder(tokenizer).rows(plain(TEXTS[2]))) > 1
    assert encoder(tokenizer)(plain(TEXTS[0])) == encoder(tokenizer).rows(plain(TEXTS[0]))[0]


def test_a_text_without_tokens_is_named(tokenizer):
    with pytest.raises(NothingToLearn, match=r"f:1: the tokenizer has no tokens for the text"):
        encoder(tokenizer).rows(plain(""))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " \n"}, r"line 1: the text is empty; expected \{\"text\": \.\.\.\}; mend the row, or leave out"),
        ({"text": 5}, "the text is int, not text"),
        ({"text": None}, "the text is NoneType, not text"),
        ({"text": "half \ud83d"}, "the text has half a character"),
        ({"prompt": "A", "chosen": "B", "rejected": "C", "messages": []}, "compares two answers .*preference"),
        ({"prompt": "A", "completion": "B", "label": True}, r"rates an answer \(label\), which only preference"),
        ({"prompt": "A", "completions": ["B"], "labels": [True]}, r"several or partial answers \(completions\)"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, r"is tokenised \(input_ids\): give its text"),
    ],
)
def test_other_rows_are_refused_by_name(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"a\.jsonl, line 1: .*{message}".replace("line 1: .*line 1", "line 1")):
        list(read_samples(str(write_jsonl(tmp_path / "a.jsonl", [row]))))


def test_the_answers_of_a_preference_set_can_be_taken_by_naming_the_format(tmp_path):
    row = sample_rows()[0] | {"chosen": "A", "rejected": "B"}
    (sample,) = read_samples(str(write_jsonl(tmp_path / "a.jsonl", [row])), "longalign")
    assert sample.answer == "Colour 0."


def test_a_run_on_plain_text_and_chats_resumes_as_if_it_had_not_stopped(arguments, tmp_path, in_tmp_path):
    """A folder of both; one of the files is a table."""
    folder = tmp_path / "own"
    folder.mkdir()
    write_jsonl(folder / "chats.jsonl", sample_rows()[:4])
    texts = [f"House {i}. " + "The grass is green. " * 30 for i in range(4)]
    (folder / "texts.csv").write_text("text\n" + "\n".join(texts))
    arguments |= {"data.train_files": str(folder), "trainer.max_steps": "4", "trainer.callbacks": kept_curve()}
    main(command(arguments))
    complete = losses()
    main(command(arguments | {"ckpt_path": "runs/x/checkpoints/step=2.ckpt"}))
    assert losses() == complete
    assert len(complete) == 4
