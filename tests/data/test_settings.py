"""The datamodule's arguments: each is in the key of the prepared data or does not change a row; each has its range."""

import inspect
import json

import pytest
from transformers import PreTrainedTokenizerFast

from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.errors import InputError
from tests.conftest import CHAT_TEMPLATE, longalign_row, sample_rows, write_jsonl

ROW = longalign_row("Another.\n\nText.", "Which?", "That.")
# Two values of each argument that changes rows; the first is the one that the others are compared under.
IN_THE_KEY = {
    "train_files": ("train.jsonl", "other.jsonl"),
    "val_files": ("val.jsonl", "other.jsonl"),
    "source": ("auto", "longalign"),
    "fields": (None, {"messages": "messages"}),
    "mixture": (None, {"train": 0.5}),
    "tokenizer": ("tokenizer", "other_tokenizer"),
    "template": ("chatml", "base"),
    "seq_len": (300, 301),
    "extend": (True, False),
    "delimiter": ("Document", "Section"),
    "too_long": ("drop", "shorten"),
    "learn": ("last", "all"),
    "bad_rows": ("error", "skip"),
    "seed": (42, 1),
}
# Of the order and the batches, of speed, or of places; the model's name is that of a tokenizer, whose content counts.
NOT_IN_THE_KEY = {
    "global_batch_size": (16, 8),
    "micro_batch_size": (1, 2),
    "loss_weighting": ("token", "sample"),
    "packing": (False, True),
    "num_workers": (1, 0),
    "prepare_workers": (1, 2),
    "cache_dir": ("cache", "other_cache"),
    "model_name_or_path": ("model", "other_model"),
}


@pytest.fixture
def key(tokenizer, tmp_path, monkeypatch):
    """The keys of training and validation under changed arguments."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", sample_rows())
    write_jsonl(tmp_path / "val.jsonl", [ROW])
    write_jsonl(tmp_path / "other.jsonl", [ROW] * 3)
    tokenizer.save_pretrained("tokenizer")
    other = PreTrainedTokenizerFast.from_pretrained("tokenizer")
    other.add_tokens(["house"])
    other.save_pretrained("other_tokenizer")
    arguments = {name: first for name, (first, _) in {**IN_THE_KEY, **NOT_IN_THE_KEY}.items()}

    def of(**changed) -> dict[str, str]:
        module = LongContextDataModule(**{**arguments, **changed})
        module.tokenizer = module._load_tokenizer()
        return {what: module._key(what) for what in ("train", "val")}

    return of


def test_every_argument_is_classified():
    assert set(inspect.signature(LongContextDataModule.__init__).parameters) - {"self"} == {
        *IN_THE_KEY,
        *NOT_IN_THE_KEY,
    }


@pytest.mark.parametrize("name", IN_THE_KEY)
def test_what_changes_rows_changes_the_key(key, name):
    before, after = key(), key(**{name: IN_THE_KEY[name][1]})
    assert before["val"] != after["val"]
    assert (before["train"] != after["train"]) == (name != "val_files")


def test_what_changes_no_row_keeps_the_key(key):
    before = key(extend=False)
    for name, (_, second) in NOT_IN_THE_KEY.items():
        assert key(extend=False, **{name: second}) == before, name


def test_the_key_follows_what_the_files_hold_and_how_they_are_called(key, tmp_path):
    before = key()
    assert key() == before
    write_jsonl(tmp_path / "val.jsonl", [ROW, ROW])
    assert (key()["train"], key()["val"] != before["val"]) == (before["train"], True)
    # A sample's id, on which its extension depends, begins with the name.
    (tmp_path / "train.jsonl").rename(tmp_path / "train2.jsonl")
    assert key(train_files="train2.jsonl")["train"] != before["train"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"eos_token": "<|im_end|>"}),  # the token that ends each answer
        ("chat_template.jinja", CHAT_TEMPLATE.replace("\n", "\n\n", 1)),
    ],
)
def test_the_key_follows_the_tokenizers_template_and_special_tokens(key, tmp_path, file, change):
    before, path = key(), tmp_path / "tokenizer" / file
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    assert key()["train"] != before["train"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({name: 0}, rf"{name} is 0") for name in ("global_batch_size", "micro_batch_size", "prepare_workers")],
        ({"seq_len": 1}, r"seq_len is 1, but must be a whole number of at least 2"),
        ({"seq_len": 2.5}, r"seq_len is 2\.5"),
        ({"num_workers": -1}, r"num_workers is -1"),
        ({"mixture": {"a": -0.5}}, r"mixture\['a'\] is -0\.5, but must be a number from 0 to 1000"),
        ({"mixture": {"a": 1e9}}, r"mixture\['a'\] is 1000000000\.0"),
        ({"mixture": {"a": float("nan")}}, r"mixture\['a'\] is nan"),
        ({"source": "csv"}, r"source is 'csv', but must be one of 'auto'"),
        ({"learn": "first"}, r"learn is 'first'"),
        ({"template": "alpaca"}, r"template is 'alpaca'"),
        ({"too_long": "cut"}, r"too_long is 'cut'"),
        ({"bad_rows": "ignore"}, r"bad_rows is 'ignore'"),
        ({"loss_weighting": "row"}, r"loss_weighting is 'row'"),
        ({"delimiter": " "}, r"data\.delimiter is ' '"),
        ({"packing": True}, r"data\.packing .*data\.extend"),
        ({"train_files": 5}, r"data\.train_files is 5, but must be names of files"),
        ({"source": "demo", "train_files": ["mine.jsonl"]}, r"leave out data\.train_files mine\.jsonl"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LongContextDataModule(**arguments)


def test_files_may_be_paths(tmp_path):
    module = LongContextDataModule(tmp_path / "a.jsonl", [tmp_path / "b.jsonl"])
    assert (module.train_files, module.val_files) == ([str(tmp_path / "a.jsonl")], [str(tmp_path / "b.jsonl")])


def test_a_micro_batch_of_more_than_a_global_one_is_refused():
    with pytest.raises(
        InputError, match=r"data\.global_batch_size 4 is not a multiple of 8 = data\.micro_batch_size 8"
    ):
        LongContextDataModule("a.jsonl", global_batch_size=4, micro_batch_size=8).prepare_data()


LONG = longalign_row("\n\n".join(f"Line {i} of a long text." for i in range(90)), "Which?", "That.")
CHANGES_ROWS = {
    "template": "base",
    "seq_len": 200,
    "extend": False,
    "delimiter": "Section",
    "too_long": "shorten",
    "mixture": {"train": 0.5},
    "seed": 1,
    "tokenizer": "other_tokenizer",
}


@pytest.fixture
def prepared(tokenizer, tmp_path, monkeypatch):
    """The texts that are prepared under changed arguments."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [*sample_rows()[:8], LONG])
    write_jsonl(tmp_path / "val.jsonl", [ROW, sample_rows()[9], longalign_row("Only here.\n\n" * 9, "Which?", "That.")])
    tokenizer.save_pretrained("tokenizer")
    other = PreTrainedTokenizerFast.from_pretrained("tokenizer")
    other.add_tokens(["House"])
    other.save_pretrained("other_tokenizer")
    base = {"tokenizer": "tokenizer", "seq_len": 300, "num_workers": 0, "prepare_workers": 1}

    def of(what="train", **changed) -> tuple[LongContextDataModule, list[str]]:
        module = LongContextDataModule("train.jsonl", "val.jsonl", **{**base, **changed})
        module.prepare_data()
        return module, [module.tokenizer.decode(row.ids) for row in module.prepare(what)]

    return of


@pytest.mark.parametrize("name", CHANGES_ROWS)
def test_an_argument_that_is_in_the_key_reaches_the_rows(prepared, name):
    before, after = prepared()[0].prepare("train"), prepared(**{name: CHANGES_ROWS[name]})[0].prepare("train")
    assert before.content != after.content


def test_validation_samples_are_extended_with_train_text_alone(prepared):
    _, texts = prepared("val")
    assert len(texts) == 3
    assert "Line " in texts[0]
    assert [text.count("Only here.") for text in texts] == [0, 0, 9]


def test_loss_weighting_padding_and_packing_reach_the_batches(prepared):
    module, _ = prepared(extend=False)
    module.setup("validate")
    lengths = [length - 1 for length in module._train.samples.num_ids]
    assert module._train.row_weights == module._train.samples.num_labels
    fits = lengths[0] + lengths[1]  # two samples exactly fill a row: the last id of each is a label only
    module, _ = prepared(extend=False, packing=True, loss_weighting="sample", seq_len=fits)
    module.setup("validate")
    assert max(module._train.row_weights) == 2
    batch = next(iter(module.val_dataloader()))
    assert batch["input_ids"].shape == (1, fits)
    assert batch["input_ids"][0, -1] == module.tokenizer.pad_token_id


def test_batches_hold_what_the_sizes_say(prepared):
    module, _ = prepared(global_batch_size=4, micro_batch_size=2, seed=3)
    module.setup("validate")
    loader = module.train_dataloader()
    assert (loader.sampler.global_batch_size, loader.sampler.samples_at_a_time, loader.sampler.seed) == (4, 2, 3)
    assert loader.sampler.shuffle
    assert next(iter(loader))["input_ids"].shape == (2, 300)


def test_malformed_rows_reach_training_only_where_they_are_skipped(prepared, tmp_path):
    with (tmp_path / "train.jsonl").open("a") as lines:
        lines.write("{}\n")
    with pytest.raises(InputError, match=r"train\.jsonl, line 10: expected"):
        prepared()
    assert len(prepared(bad_rows="skip")[1]) == 8


def test_two_samples_that_exactly_fill_a_row_share_it(prepared, tmp_path):
    """The last id of each sample is a label only."""
    write_jsonl(tmp_path / "train.jsonl", sample_rows()[:2])
    module, _ = prepared(extend=False)
    fits = sum(module.prepare("train").num_ids) - 2
    for seq_len, rows in ((fits, 1), (fits - 1, 2)):
        module, _ = prepared(extend=False, packing=True, seq_len=seq_len)
        module.setup("validate")
        assert len(module._train) == rows


def test_the_seed_decides_which_half_of_a_file_the_mixture_takes(prepared):
    contents = {prepared(extend=False, mixture={"train": 0.5}, seed=s)[0].prepare("train").content for s in range(4)}
    assert len(contents) > 1
