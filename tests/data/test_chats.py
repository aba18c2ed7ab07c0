"""Chat rows keep their roles under the tokenizer's chat template: compared with the template applied to all turns."""

import copy

import pytest

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.dataset import LongContextDataset
from lrsa_lightning.data.encoder import NothingToLearn, SampleEncoder
from lrsa_lightning.data.prepared import prepare
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.data.template import make_template
from lrsa_lightning.loss import IGNORE_INDEX
from tests.conftest import write_jsonl

DOCUMENT = "\n\n".join(f"House {i} is painted in colour {i * 3 % 7}." for i in range(9))
CHAT = [
    ("system", "You answer in one word."),
    ("user", f"{DOCUMENT}\n\nWhich colour has house 1?"),
    ("assistant", "Three."),
    ("user", "A look at the list again.\n\nAnd house 2?"),
    ("assistant", "Six."),
]
SHARED = {"system": "system", "user": "human", "assistant": "gpt"}
ROWS = {
    "longalign": {"messages": [{"role": role, "content": content} for role, content in CHAT]},
    "sharegpt": {"conversations": [{"from": SHARED[role], "value": content} for role, content in CHAT]},
    "refgpt": {
        "reference": DOCUMENT,
        "dialogue": "<user 1>: Which colour has house 1? <assistant 1>: Three. "
        "<user 2>: A look at the list again.\n\nAnd house 2? <assistant 2>: Six.",
    },
}


def sample_of(tmp_path, row) -> Sample:
    (sample,) = read_samples(str(write_jsonl(tmp_path / "a.jsonl", [row])))
    return sample


def encoder(tokenizer, template: str = "chatml", seq_len: int = 1000, **options) -> SampleEncoder:
    return SampleEncoder(
        tokenizer, make_template(template, tokenizer), seq_len, options.pop("extender", None), **options
    )


def rendered(tokenizer, turns) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")


@pytest.mark.parametrize("source", ROWS)
def test_the_text_is_that_of_the_chat_template(tokenizer, tmp_path, source):
    encoded = encoder(tokenizer)(sample_of(tmp_path, ROWS[source]))
    turns = CHAT[1:] if source == "refgpt" else CHAT
    assert tokenizer.decode(encoded.ids) == rendered(tokenizer, turns)
    assert tokenizer.decode(encoded.ids[-encoded.num_labels :]) == "Six.<|im_end|>"


def test_without_roles_the_turns_are_text_as_before(tokenizer, tmp_path):
    encoded = encoder(tokenizer, "base")(sample_of(tmp_path, ROWS["longalign"]))
    text = "\n\n".join(content for _, content in CHAT[:-1]) + " Six.<|endoftext|>"
    assert tokenizer.decode(encoded.ids) == text


def test_sections_come_into_the_last_turn(tokenizer, tmp_path):
    pool = [
        Sample(f"f:{i}", f"Text number {i} of the pool, which is long enough.\n\n", "What?", "That.") for i in range(60)
    ]
    encoded = encoder(tokenizer, extender=Extender(pool, "Document", 0))(sample_of(tmp_path, ROWS["longalign"]))
    start = rendered(tokenizer, CHAT[:-2]) + "\n<|im_start|>user\n"
    end = rendered(tokenizer, CHAT[-2:]).removeprefix("<|im_start|>user\n")
    text = tokenizer.decode(encoded.ids)
    assert len(encoded.ids) > 900
    assert text.startswith(start + "Document 1:\n")
    assert text.endswith(end)


def learned(tokenizer, row) -> list[str]:
    return [tokenizer.decode(row.ids[start:stop]) for start, stop in row.spans]


@pytest.mark.parametrize("options", [{}, {"seq_len": 170, "too_long": "shorten"}], ids=str)
def test_each_answer_is_learned_by_choice(tokenizer, tmp_path, options):
    """The first answer's word is in the system prompt, too."""
    row = ROWS["longalign"] | {
        "messages": [{"role": "system", "content": "Not Three."}, *ROWS["longalign"]["messages"][1:]]
    }
    sample = sample_of(tmp_path, row)
    every, last = (encoder(tokenizer, learn=learn, **options)(sample) for learn in ("all", "last"))
    assert learned(tokenizer, every) == ["Three.<|im_end|>", "Six.<|im_end|>"]
    assert learned(tokenizer, last) == ["Six.<|im_end|>"]
    assert tokenizer.decode(every.ids) == tokenizer.decode(last.ids)
    assert every.shortened == bool(options)


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_labels_of_a_row_are_those_of_its_answers(tokenizer, tmp_path, weighting):
    """Through the prepared files; two samples are packed into a row."""
    samples = [sample_of(tmp_path, ROWS["longalign"]), sample_of(tmp_path, ROWS["refgpt"])]
    prepared = prepare(tmp_path / "prepared", samples, encoder(tokenizer, learn="all"))
    rows = [encoder(tokenizer, learn="all")(sample) for sample in samples]
    sizes = [[stop - start for start, stop in row.spans] for row in rows]
    assert prepared.num_labels == [*map(sum, sizes)]
    dataset = LongContextDataset(prepared, prepared.num_labels, 1000, 0, weighting, rows=[[0, 1]])
    batch = dataset[MicroBatch([0], 1, sum(prepared.num_labels))]
    labels, weights = batch["labels"][0], batch["weights"][0]
    at = labels != IGNORE_INDEX
    assert tokenizer.decode(labels[at]) == "Three.<|im_end|>Six.<|im_end|>" * 2
    shifted = batch["input_ids"][0][1:][at[:-1]]  # all labels but each sample's last id are the next inputs
    assert tokenizer.decode(shifted).count("Three.<|im_end|>") == 2
    assert (weights != 0).equal(at)
    expected = 2 if weighting == "sample" else sum(prepared.num_labels)
    assert weights.sum().item() == pytest.approx(expected)


def test_an_answer_that_the_template_changes_names_the_row(tokenizer, tmp_path):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | replace('Three', '3')")
    encoder(odd, learn="last")(sample_of(tmp_path, ROWS["longalign"]))
    with pytest.raises(NothingToLearn, match=r"a\.jsonl:1: .*chat template cannot be used"):
        encoder(odd, learn="all")(sample_of(tmp_path, ROWS["longalign"]))


@pytest.mark.parametrize("seq_len", [150, 200])
def test_the_document_is_shortened_where_it_lies(tokenizer, tmp_path, seq_len):
    encoded = encoder(tokenizer, seq_len=seq_len, too_long="shorten")(sample_of(tmp_path, ROWS["longalign"]))
    text, complete = tokenizer.decode(encoded.ids), rendered(tokenizer, CHAT)
    assert encoded.shortened
    assert len(encoded.ids) == seq_len + 1
    start, _, end = complete.partition(CHAT[1][1])
    assert text.startswith(start + CHAT[1][1][:8])
    assert text.endswith(CHAT[1][1][-8:] + end)
    assert encoder(tokenizer, seq_len=seq_len)(sample_of(tmp_path, ROWS["longalign"])) is None


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}", "no system role"),
        ("{% set messages = messages | rejectattr('role', 'equalto', 'system') %}", "leaves out the text of a turn"),
    ],
)
def test_a_template_that_cannot_hold_a_turn_names_the_row(tokenizer, tmp_path, template, reason):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = template + tokenizer.chat_template
    with pytest.raises(NothingToLearn, match=f"a.jsonl:1: .*{reason}"):
        encoder(odd, learn="last")(sample_of(tmp_path, ROWS["longalign"]))
    assert encoder(odd)(sample_of(tmp_path, ROWS["refgpt"])) is not None
