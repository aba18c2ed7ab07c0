"""The eight niah tasks against RULER's texts, to the space."""

import copy
import re
from dataclasses import dataclass
from importlib.resources import files
from random import Random

import pytest

from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.niah import Niah
from lrsa_lightning.ruler.sources import Essays
from lrsa_lightning.ruler.task_generator import Draws
from tests.ruler.conftest import AROUND, NIAH, between, count_tokens, essay_sentences, essay_words, user_turn

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
# The places in the essays, in percent: 40 points from 0 to 100, rounded.
GRID = [0, 3, 5, 8, 10, 13, 15, 18, 21, 23, 26, 28, 31, 33, 36, 38, 41, 44, 46, 49]
GRID += [100 - depth for depth in reversed(GRID)]


@dataclass(frozen=True)
class Spec:
    """A task as RULER's table has it."""

    haystack: str = "essay"
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    @property
    def needle(self) -> re.Pattern:
        key = UUID if self.keys == "uuids" else r"[^\n.]+?"
        value = UUID if self.values == "uuids" else r"[1-9]\d{6}"
        return re.compile(rf"One of the special magic {self.values} for ({key}) is: ({value})\.")


SPECS = {
    "niah_single_1": Spec("noise"),
    "niah_single_2": Spec(),
    "niah_single_3": Spec(values="uuids"),
    "niah_multikey_1": Spec(num_keys=4),
    "niah_multikey_2": Spec("needle"),
    "niah_multikey_3": Spec("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Spec(num_values=4),
    "niah_multiquery": Spec(num_keys=4, num_queries=4),
}
ESSAY_TASKS = [task for task in NIAH if SPECS[task].haystack == "essay"]
# Text, query and answer prefix for one answer, and for several.
SINGULAR = (
    "A special magic {type} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n",
    "\nWhat is the special magic {type} for {query} mentioned in the provided text?",
    " The special magic {type} for {query} mentioned in the provided text is",
)
PLURAL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n",
    "\nWhat are all the special magic numbers for {query} mentioned in the provided text?",
    " The special magic numbers for {query} mentioned in the provided text are",
)


def texts_of(spec: Spec) -> tuple[str, ...]:
    if spec.num_values * spec.num_queries > 1:
        return PLURAL
    return tuple(text.replace("{type}", {"numbers": "number", "uuids": "uuid"}[spec.values]) for text in SINGULAR)


def parse(task: str, sample: dict, template: str = "base") -> tuple[str, str, list[tuple[str, str]]]:
    """The context, the query, and keys and values of its needles, after a check of all else."""
    head, question, prefix = texts_of(SPECS[task])
    query = between(sample["answer_prefix"], *prefix.split("{query}"))
    context = between(user_turn(sample, template), head, question.replace("{query}", query))
    return context, query, SPECS[task].needle.findall(context)


def parse_essay(task: str, context: str) -> tuple[list[str], list[re.Match]]:
    """The pieces of the essays around the needles, less the one space that joins them, and the needles."""
    needles = list(SPECS[task].needle.finditer(context))
    starts = [0, *(needle.end() + 1 for needle in needles)]
    ends = [*(needle.start() - 1 for needle in needles), len(context)]
    pieces = [context[start:end] for start, end in zip(starts, ends, strict=True)]
    joined = [pieces[0]]
    for needle, piece in zip(needles, pieces[1:], strict=True):
        joined += [needle[0], piece]
    assert " ".join(joined) == context
    return pieces, needles


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("task", NIAH)
def test_texts(samples, tokenizer, task, template):
    spec = SPECS[task]
    for sample in samples(task, 4096, 4, template):
        _, query, needles = parse(task, sample, template)
        queried = re.split(", and |, ", query) if spec.num_queries > 1 else [query]
        assert len(queried) == len(set(queried)) == spec.num_queries
        if spec.num_queries > 1:
            assert query == f"{queried[0]}, {queried[1]}, {queried[2]}, and {queried[3]}"
        values = {key: [value for k, value in needles if k == key] for key in queried}
        assert all(len(found) == spec.num_values for found in values.values())
        if spec.num_values == 1:
            assert sample["outputs"] == [values[key][0] for key in queried]
        else:
            assert sorted(sample["outputs"]) == sorted(values[query])
        if spec.haystack != "needle":
            assert len(needles) == spec.num_keys * spec.num_values
            assert len({key for key, _ in needles}) == spec.num_keys
        before = sample["input"][: sample["input"].index(sample["outputs"][0])]
        assert sample["token_position_answer"] == count_tokens(tokenizer, before)


@pytest.mark.parametrize("template", ["base", "chatml"])
@pytest.mark.parametrize("task", NIAH)
def test_the_singular_edit_leaves_the_chat_template_alone(tokenizer, source_files, task, template):
    """The official code edits it too: "You is a helpful assistant"."""
    system = "You are a helpful assistant. Some answers are all you need."
    chatty = copy.copy(tokenizer)
    chatty.chat_template = "<|im_start|>system\n" + system + "<|im_end|>\n" + tokenizer.chat_template
    (sample,) = make_samples(task, chatty, 4096, 1, template=template, **source_files)
    found = sample["input"].startswith("<|im_start|>system\n" + system + "<|im_end|>\n<|im_start|>user\n")
    assert found == (template == "chatml")


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multikey_3"])
def test_lines(samples, task):
    spec = SPECS[task]
    for sample in samples(task, 4096, 4):
        context, query, _ = parse(task, sample)
        lines = context.split("\n")
        own = f"One of the special magic {spec.values} for {query} is: {sample['outputs'][0]}."
        assert lines.count(own) == 1
        assert sample["depths"] == [lines.index(own) / (len(lines) - 1)]
        assert len(lines) > 20
        if spec.haystack == "noise":
            assert set(lines) == {NOISE, own}
        else:
            assert all(spec.needle.fullmatch(line) for line in lines)
            assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("task", ESSAY_TASKS)
def test_needles_are_between_sentences_on_the_grid(samples, task):
    sentences = essay_sentences()
    for sample in samples(task, 4096, 4):
        pieces, needles = parse_essay(task, parse(task, sample)[0])
        rest = " ".join(piece for piece in pieces if piece)
        assert rest.split(" ") == essay_words()[: len(rest.split(" "))]
        # Lengths of the text after each number of sentences. The last one may be cut short.
        ends = [len(" ".join(sentences[:n])) for n in range(len(sentences))]
        ends = [end for end in ends if end < len(rest)] + [len(rest)]
        depth_of = {}
        for i, needle in enumerate(needles):
            before = ends.index(len(" ".join(piece for piece in pieces[: i + 1] if piece)))
            depth_of[needle[2]] = [depth for depth in GRID if int((len(ends) - 1) * depth / 100) == before]
        for value, depth in zip(sample["outputs"], sample["depths"], strict=True):
            assert round(100 * depth) in depth_of[value]
        assert all(depth_of.values())


def test_needles_at_the_ends_and_side_by_side_keep_the_spaces_of_empty_pieces():
    """50 words are 8 sentences, so that many of the 40 depths fall on the same place."""
    generator = Niah(Essays(" ".join(essay_words())), num_values=4)
    seen = set()
    for seed in range(300):
        text = generator.generate(Draws(Random(seed)), 50)
        context = between(text.user, PLURAL[0], text.user[text.user.rindex("\nWhat are all") :])
        pieces, needles = parse_essay("niah_multivalue", context)
        assert " ".join(piece for piece in pieces if piece) == " ".join(essay_words()[:50])
        assert len(needles) == 4
        seen |= {("start", context.startswith(" One of")), ("end", context.endswith(". "))}
        seen.add(("double", bool(re.search(r"\.  One of", context))))
        assert context.startswith(" ") == (int(8 * min(text.depths)) == 0)
        assert context.endswith(" ") == (max(text.depths) == 1)
    assert seen == {(where, found) for where in ("start", "end", "double") for found in (True, False)}


def test_essays_start_again_after_their_end():
    words = ["One", "two", "three.", "Four", "five?", "Six", "seven"]
    essays = Essays("One  two\nthree.\tFour five?\n\nSix seven")
    for count in range(40):
        assert " ".join(essays.sentences(count)).split() == (words * 6)[:count]


def test_keys_are_an_adjective_and_a_noun_of_wonderwords(samples):
    folder = files("wonderwords") / "assets"
    adjectives, nouns = (set((folder / f"{kind}list.txt").read_text().split("\n")) for kind in ("adjective", "noun"))
    keys = {key for sample in samples("niah_multikey_2", 4096, 4) for key, _ in parse("niah_multikey_2", sample)[2]}
    for key in keys:
        parts = key.split("-")
        assert any("-".join(parts[:i]) in adjectives and "-".join(parts[i:]) in nouns for i in range(1, len(parts)))
    assert len(keys) > 80


@pytest.mark.parametrize("task", NIAH)
def test_needles_are_everywhere_in_the_context(samples, task):
    places = []
    for sample in samples(task, 2048, 40):
        user = user_turn(sample, "base")
        context, _, _ = parse(task, sample)
        start = user.index(context)
        for value, depth in zip(sample["outputs"], sample["depths"], strict=True):
            places.append((user.index(f" is: {value}.") - start) / len(context))
            assert abs(depth - places[-1]) < 0.15
    assert min(places) < 0.1
    assert max(places) > 0.85


def test_the_order_of_values_varies(samples):
    """In the official code it is the same in all samples."""
    orders = set()
    for sample in samples("niah_multivalue", 2048, 20):
        values = [value for _, value in parse("niah_multivalue", sample)[2]]
        orders.add(tuple(sample["outputs"].index(value) for value in values))
    assert len(orders) > 8


def test_the_key_asked_for_varies(samples):
    queried = set()
    for sample in samples("niah_multikey_1", 2048, 20):
        _, query, needles = parse("niah_multikey_1", sample)
        queried.add([key for key, _ in needles].index(query))
    assert queried == {0, 1, 2, 3}
