"""The embedded data set: a small encyclopedia of made-up facts in LongAlign's format, and a tokenizer for it.

A document is a fact hidden in RULER's noise. From random weights, a tiny model learns niah_single_1 on them in minutes.
Keys and values are random; RULER's own needles are not among them.
"""

import json
import random
import tempfile
from pathlib import Path

from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.haystack import NOISE, random_number, random_words

NUM_SAMPLES = 4000
MAX_LINES = 13
VOCAB_SIZE = 1024
_SEED = 0

# The name of a fact's number, and the sentence that states it.
_FACTS = {
    "special magic number": "One of the special magic numbers for {key} is: {value}.",
    "catalogue number": "The catalogue number of {key} is: {value}.",
    "population": "The population of {key} is: {value}.",
    "distance": "The distance to {key} is: {value}.",
}
_INTRO = (
    "A {what} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards."
)
_QUESTION = (
    "What is the {what} for {key} mentioned in the provided text? "
    "The {what} for {key} mentioned in the provided text is"
)
# A digit and how many digits follow it, as one character of Unicode's private use area.
_PLACED = {(digit, place): chr(0xE000 + 10 * place + digit) for place in range(6, -1, -1) for digit in range(10)}


def make_demo_data(directory: Path) -> None:
    """Writes ``train.jsonl`` and the folder ``tokenizer``, the same each time.

    Each write is atomic: another run may be reading the file.
    """
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    rng = random.Random(_SEED)
    samples = [_make_sample(rng) for _ in range(NUM_SAMPLES)]
    write_text(directory / "train.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
    with tempfile.TemporaryDirectory() as folder:
        _make_tokenizer(samples).save_pretrained(folder)
        for file in Path(folder).iterdir():
            write_text(directory / "tokenizer" / file.name, file.read_text(encoding="utf-8"))


def _make_sample(rng: random.Random) -> dict:
    """A note of one fact, or a document that hides it in noise; the answer is the fact's number."""
    what = rng.choice(["special magic number", rng.choice(list(_FACTS))])
    key, value = random_words(rng), random_number(rng)
    fact = _FACTS[what].format(key=key, value=value)
    if rng.random() < 0.4:  # a model learns to copy faster from few tokens
        user = f"{fact}\nRepeat the number."
    else:
        document = [fact] + [NOISE] * rng.randint(0, MAX_LINES - 1)
        rng.shuffle(document)
        user = "\n".join([_INTRO.format(what=what), *document, _QUESTION.format(what=what, key=key)])
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": f"{value}."}]}


def _make_tokenizer(samples: list[dict]):
    """Byte-level BPE of words, with separate tokens for each digit at each of the last seven places of a number.

    The 3 of 1234567 and the 3 of 300 are different tokens. A model can then copy a number without counting: a digit of
    the next place follows each digit. Decoding gives plain digits.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(rf"{digit}(?=\d{{{place}}}(?!\d))"), char)
            for (digit, place), char in _PLACED.items()
        ]
    )
    pieces = r" ?[P]| ?\d| ?\p{L}+| ?[^\s\p{L}\p{N}P]+|\s+(?!\S)|\s+".replace("P", "".join(_PLACED.values()))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.Sequence(
        [decoders.ByteLevel(), *(decoders.Replace(char, str(digit)) for (digit, _), char in _PLACED.items())]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((turn["content"] for sample in samples for turn in sample["messages"]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
