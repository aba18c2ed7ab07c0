"""The ids of turns, against those of training and of the tokenizer's chat template."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lrsa_lightning.conversation import Turns
from lrsa_lightning.data.encoder import SampleEncoder
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import make_template
from lrsa_lightning.errors import InputError
from tests.conftest import CHAT_TEMPLATE

DOCUMENT = "The grass is green.\nOne of the magic numbers\n\nfor blue-house is: 1234567."
QUESTIONS = ["Which number?", "2 or 3?", "(None?)"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a blank line is one token at the end of a text, and two before a word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["The grass is green. One of the magic numbers.\n\n"] * 10, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    assert len(fast("\n\n")["input_ids"]) == 1 < len(fast("\n\nOne")["input_ids"]) - 1
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.mark.parametrize("template", ["base", "chatml"])
@pytest.mark.parametrize("document", ["", "1", DOCUMENT, DOCUMENT * 300, DOCUMENT + "\n\n \n"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_document_and_question_have_the_ids_of_a_training_sample(tokenizer, template, document, question):
    turns = Turns(template, tokenizer, document)
    encode = SampleEncoder(tokenizer, make_template(template, tokenizer), 10**6, None)
    separated = f"{document.rstrip()}\n\n" if document else ""
    sample = encode(Sample("a", separated, question, "It is green."))
    assert turns.document_ids + turns.question(f" {question}\n") == sample.ids[: -sample.num_labels]


def test_all_but_the_documents_last_words_are_known_before_the_question(tokenizer):
    turns = Turns("base", tokenizer, DOCUMENT * 300)
    assert len(turns.question("Which number?")) < 60 < len(turns.document_ids)


def test_further_turns_are_those_of_the_chat_template(tokenizer):
    turns = Turns("chatml", tokenizer, DOCUMENT)
    ids = turns.document_ids + turns.question(QUESTIONS[0])
    messages = [{"role": "user", "content": f"{DOCUMENT}\n\n{QUESTIONS[0]}"}]
    for answer, question in zip(["One.", "Two."], QUESTIONS[1:], strict=True):
        turns.answered()
        ids += tokenizer(answer)["input_ids"] + turns.question(question)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer(text)["input_ids"]


def test_without_a_chat_template_a_blank_line_parts_the_turns(tokenizer):
    turns = Turns("base", tokenizer)
    assert tokenizer.decode(turns.question("One?")) == "One?"
    turns.answered()
    assert tokenizer.decode(turns.question("Two?")) == "\n\nTwo?"


@pytest.mark.parametrize(("template", "end"), [("base", "<|endoftext|>"), ("chatml", "<|im_end|>")])
def test_an_answer_ends_where_training_ended_it(tokenizer, template, end):
    assert Turns(template, tokenizer).ends == [tokenizer.convert_tokens_to_ids(end)]


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(tokenizer, question):
    with pytest.raises(InputError, match="question is empty"):
        Turns("base", tokenizer).question(question)


def test_a_template_without_a_second_turn_is_refused(tokenizer, monkeypatch):
    only_two = CHAT_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages[:2] %}")
    monkeypatch.setattr(tokenizer, "chat_template", only_two)
    turns = Turns("chatml", tokenizer)
    with pytest.raises(InputError, match="chat template cannot be used"):
        turns.answered()
