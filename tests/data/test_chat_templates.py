"""What is learned of a chat under templates of several families: compared with texts written by hand."""

import copy

import pytest

from lrsa_lightning.data.encoder import NothingToLearn, SampleEncoder
from lrsa_lightning.data.sample import Sample, texts_of
from lrsa_lightning.data.template import TemplateOfEach, make_template
from lrsa_lightning.errors import InputError

TURNS = (("system", "Be brief."), ("user", "One?"), ("assistant", "Uno."))
CHAT = Sample("f:1", texts_of(TURNS) + "A text.\n\n", "Two?", " Due.\n", TURNS, "chat")
# Default system prompt and trailing line ends, as Qwen2.5's.
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Trims each text, as Llama 3's.
LLAMA = (
    "{{ '<b>' }}{% for m in messages %}{{ '<h>' + m.role + '</h>\n\n' + m.content | trim + '<eot>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}"
)
# The system prompt comes into the last user's turn, and there is no generation prompt, as Mistral's.
MISTRAL = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (s + '\n\n' if s and not loop.index0 > 1 else '') + m.content + ' [/INST]'"
    " }}{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)
# A chat ends with the end token besides, as Phi-3's.
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
# The last answer has empty thoughts before it, and earlier ones have none, as Qwen3's.
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The generation prompt opens thoughts, which no answer has, as DeepSeek-R1's.
OPENS_THOUGHTS = LLAMA.replace("'<h>assistant</h>\n\n'", "'<h>assistant</h>\n\n<think>\n'")
# The same with generation marks.
MARKED = (
    "{% for m in messages %}{{ '<h>' + m.role + '</h>\n\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content | trim + '<eot>' }}{% endgeneration %}{% else %}{{ m.content + '<eot>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n<think>\n' }}{% endif %}"
)
# The text; what is learned is between >> and <<.
EXPECTED = {
    "QWEN": (
        QWEN,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
        ">>Uno.<|im_end|><<\n<|im_start|>user\nA text.\n\nTwo?<|im_end|>\n<|im_start|>assistant\n"
        ">> Due.\n<|im_end|><<",
    ),
    "LLAMA": (
        LLAMA,
        "<b><h>system</h>\n\nBe brief.<eot><h>user</h>\n\nOne?<eot><h>assistant</h>\n\n>>Uno.<eot><<"
        "<h>user</h>\n\nA text.\n\nTwo?<eot><h>assistant</h>\n\n>>Due.<eot><<",
    ),
    "MISTRAL": (
        MISTRAL,
        "[INST] Be brief.\n\nOne? [/INST]>> Uno.</s><<[INST] A text.\n\nTwo? [/INST]>> Due.</s><<",
    ),
    "PHI": (
        PHI,
        "<|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\n>>Uno.<|end|><<\n<|user|>\nA text.\n\n"
        "Two?<|end|>\n<|assistant|>\n>> Due.\n<|end|>\n<|endoftext|><<",
    ),
    "MARKED": (
        MARKED,
        "<h>system</h>\n\nBe brief.<eot><h>user</h>\n\nOne?<eot><h>assistant</h>\n\n>>Uno.<eot><<"
        "<h>user</h>\n\nA text.\n\nTwo?<eot><h>assistant</h>\n\n>>Due.<eot><<",
    ),
}


def encoder(tokenizer, template: str | None, choice: str = "chatml", **options) -> SampleEncoder:
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = template
    return SampleEncoder(odd, TemplateOfEach(choice, odd), options.pop("seq_len", 1000), None, **options)


def marked(tokenizer, row) -> str:
    text, end = "", 0
    for start, stop in row.spans:
        text += tokenizer.decode(row.ids[end:start]) + ">>" + tokenizer.decode(row.ids[start:stop]) + "<<"
        end = stop
    return text


@pytest.mark.parametrize(("template", "expected"), EXPECTED.values(), ids=EXPECTED)
@pytest.mark.parametrize("options", [{}, {"too_long": "shorten"}], ids=str)
def test_each_answer_is_learned_with_what_ends_it(tokenizer, template, expected, options):
    assert marked(tokenizer, encoder(tokenizer, template, **options)(CHAT)) == expected
    earlier, _, last = expected.removesuffix("<<").rpartition(">>")
    without_earlier = earlier.replace(">>", "").replace("<<", "")
    row = encoder(tokenizer, template, learn="last", **options)(CHAT)
    assert marked(tokenizer, row) == f"{without_earlier}>>{last}<<"


def test_a_document_that_the_template_trims_is_shortened_in_the_middle(tokenizer):
    document = "\n " + " ".join(f"House {i} is green." for i in range(40)) + "\n\n"
    sample = Sample("f:1", document, "Which one of them?", "Due.", kind="chat")
    row = encoder(tokenizer, LLAMA, seq_len=150, too_long="shorten")(sample)
    text = tokenizer.decode(row.ids)
    assert len(row.ids) == 151
    assert text.startswith("<b><h>user</h>\n\nHouse 0 is green.")
    assert text.endswith("House 39 is green.\n\nWhich one of them?<eot><h>assistant</h>\n\nDue.<eot>")


def test_the_default_system_prompt_is_the_templates(tokenizer):
    row = encoder(tokenizer, QWEN)(Sample("f:1", "", "Two?", "Due.", kind="chat"))
    assert tokenizer.decode(row.ids).startswith("<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nTwo?")


def test_an_answer_that_changes_once_a_turn_follows_is_learned_at_the_end_alone(tokenizer):
    """To learn it there would teach a text that the model is never asked for."""
    with pytest.raises(NothingToLearn, match=r"f:1: .*answer in turn 3 changes once a turn follows.*data\.learn last"):
        encoder(tokenizer, THINKS)(CHAT)
    text = marked(tokenizer, encoder(tokenizer, THINKS, learn="last")(CHAT))
    assert text.endswith("<|im_start|>assistant\n>><think>\n\n</think>\n\n Due.\n<|im_end|><<")
    assert text.count("think") == 2


def test_a_template_that_does_not_say_what_an_answer_is_is_refused_before_the_rows_are_read(tokenizer):
    for learn in ("last", "all"):
        with pytest.raises(NothingToLearn, match="generation prompt is not how the text of an answer begins"):
            encoder(tokenizer, OPENS_THOUGHTS, learn=learn)(CHAT)
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = OPENS_THOUGHTS
    with pytest.raises(InputError, match="generation prompt is not how the text of an answer begins"):
        TemplateOfEach("auto", odd).check([CHAT])
    TemplateOfEach("base", odd).check([CHAT])
    assert make_template("chatml", odd).after.endswith("<think>\n")  # such a model can be asked, but not tuned on


def test_a_template_that_takes_no_plain_text_is_named(tokenizer):
    """Templates of models that see pictures want a list of parts."""
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match=r"cannot be used .*it shows the text of a turn 0 times"):
        encoder(tokenizer, parts)(CHAT)


def test_an_answer_that_only_the_end_of_the_chat_ends_is_not_learned_before_it(tokenizer):
    """In the middle of a chat nothing would end it."""
    endless = PHI.replace("'<|end|>\n'", "'\n'")
    with pytest.raises(NothingToLearn, match="answer in turn 3 changes once a turn follows"):
        encoder(tokenizer, endless)(CHAT)


@pytest.mark.parametrize(
    ("choice", "template", "kind", "own", "keeps_roles"),
    [
        ("auto", QWEN, "chat", None, True),
        ("auto", None, "chat", None, False),
        ("auto", QWEN, "question", None, False),
        ("auto", QWEN, "chat", "base", False),
        ("auto", QWEN, "question", "chatml", True),
        ("base", QWEN, "chat", None, False),
        ("base", QWEN, "chat", "auto", True),
        ("chatml", QWEN, "question", None, True),
    ],
)
def test_auto_keeps_the_roles_of_chats_if_the_tokenizer_can(tokenizer, choice, template, kind, own, keeps_roles):
    sample = Sample("f:1", "A text.\n\n", "Two?", "Due.", (), kind, own)
    text = tokenizer.decode(encoder(tokenizer, template, choice)(sample).ids)
    assert text.startswith("<|im_start|>system\nYou help." if keeps_roles else "A text.\n\nTwo? Due.<|endoftext|>")


def test_chats_that_lose_their_roles_are_counted(tokenizer, caplog):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = None
    TemplateOfEach("auto", tokenizer).warn_of_lost_roles([CHAT] * 3)
    assert not caplog.records
    TemplateOfEach("auto", odd).warn_of_lost_roles([CHAT, CHAT, Sample("f:2", "", "One?", "Uno.", (), "chat")])
    assert "2 chats have turns before their last question" in caplog.text
    assert encoder(tokenizer, None, "auto")(CHAT).learned == []
