"""Small sources in RULER's formats, tokenizers, and samples made once for all tests."""

import gzip
import json
import signal
from functools import cache
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from tests.conftest import CHAT_TEMPLATE, make_model

TASK = "niah_single_1"
NIAH = [f"niah_{name}" for name in ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3")]
NIAH += ["niah_multivalue", "niah_multiquery"]
ALL_TASKS = [*NIAH, "vt", "cwe", "fwe", "qa_1", "qa_2"]
# Texts before and after the user's turn.
AROUND = {"base": ("", ""), "chatml": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")}
_NOUNS = ["river", "market", "lantern", "carpenter", "kettle", "bridge", "captain", "letter", "winter", "garden"]
_VERBS = ["paints", "follows", "carries", "repairs", "forgets", "remembers", "borrows", "measures"]
_ADJECTIVES = ["quiet", "wooden", "early", "crooked", "bright", "patient", "narrow", "distant"]


def count_tokens(tokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def user_turn(sample: dict, template: str) -> str:
    """A sample's user turn, after a check of the chat template's text around it."""
    before, after = AROUND[template]
    assert sample["input"].startswith(before)
    assert sample["input"].endswith(after)
    return sample["input"][len(before) : len(sample["input"]) - len(after)]


def between(text: str, head: str, tail: str) -> str:
    """The part between a text's exact beginning and end."""
    assert text[: len(head)] == head
    assert text[len(text) - len(tail) :] == tail
    return text[len(head) : len(text) - len(tail)]


def sentence(rng: Random, end: str = ".") -> str:
    words = [rng.choice(words) for words in (_ADJECTIVES, _NOUNS, _VERBS, _ADJECTIVES, _NOUNS)]
    return f"The {words[0]} {words[1]} {words[2]} a {words[3]} {words[4]}{end}"


def essay_sentences() -> list[str]:
    """The sentences of the essays, with different ends."""
    rng = Random(1)
    return [sentence(rng, rng.choice([".", ".", ".", "?", "!", '."', ".)", ".\u201d"])) for _ in range(400)]


def squad_content() -> dict:
    """6 articles of 18 paragraphs, one of them common to all, with unanswerable questions and repeated answers."""
    rng = Random(2)
    articles = []
    for a in range(6):
        paragraphs = [{"context": "A paragraph of every article.", "qas": []}]
        for p in range(17):
            answers = [{"text": text} for text in (f"{a}.{p}", f"{a}.{p}", "Paragraph")]
            qas = [
                {"question": f"What is asked of {a}.{p}?", "is_impossible": False, "answers": answers},
                {"question": f"What is not said in {a}.{p}?", "is_impossible": True, "answers": []},
            ]
            paragraphs.append({"context": f"Paragraph {a}.{p}: {sentence(rng)} {sentence(rng)}", "qas": qas})
        articles.append({"title": f"Article {a}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def hotpotqa_content() -> list[dict]:
    """20 questions of 10 paragraphs, the last ones of 4; neighbours have one in common."""
    rng = Random(3)
    pool = [[f"Title {i}", [sentence(rng), " " + sentence(rng)]] for i in range(200)]
    rows = []
    for i in range(20):
        context = pool[9 * i : 9 * i + (4 if i >= 16 else 10)]
        rows.append({"question": f"Which one is {i}?", "answer": f"Title {9 * i}", "context": context})
    return rows


@pytest.fixture(scope="session")
def source_files(tmp_path_factory) -> dict[str, Path]:
    """The four sources, as arguments of make_samples; one of them compressed."""
    folder = tmp_path_factory.mktemp("sources")
    # White space of any kind separates words.
    gaps = Random(4)
    essays = "".join(word + gaps.choice([" ", " ", " ", "\n", "\n\n", "\t", "  "]) for word in essay_words())
    contents = {
        "essays": {"text": "\n" + essays},
        "squad": squad_content(),
        "hotpotqa": hotpotqa_content(),
        "english_words": {str(i): f"english{i}" for i in range(9000)},
    }
    paths = {name: folder / f"{name}.json" for name in contents}
    paths["hotpotqa"] = folder / "hotpotqa.json.gz"
    for name, path in paths.items():
        content = json.dumps(contents[name]).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return paths


def essay_words() -> list[str]:
    return " ".join(essay_sentences()).split()


@pytest.fixture(scope="session")
def samples(tokenizer, source_files):
    """make_samples on the sources, each set made once."""

    @cache
    def make(task: str, max_length: int, num_samples: int, template: str = "base", **keys) -> list[dict]:
        return make_samples(task, tokenizer, max_length, num_samples, template=template, **source_files, **keys)

    return make


def _fast(core: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<|endoftext|>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _fast(core)


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word between white space."""
    core = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<unk>": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(core)


@pytest.fixture
def deadline():
    """Fails a test that hangs."""

    def fail(*_):
        pytest.fail("still at it after 10 seconds")

    earlier = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


@pytest.fixture
def evaluator(tokenizer):
    samples = {(TASK, 640): make_samples(TASK, tokenizer, 640, 5)}
    return RulerEvaluator(tokenizer, samples, batch_size=2)


@pytest.fixture
def model(tokenizer):
    return make_model(vocab_size=len(tokenizer))


def all_records(evaluator, model, **arguments):
    return [record for batch in evaluator.evaluate(model, **arguments) for record in batch]
