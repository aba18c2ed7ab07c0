"""official_compat: orders, questions and sizes as the official code has them, and its edit of the chat template."""

import copy
import math
from collections import Counter
from random import Random

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler import TASKS, make_samples
from lrsa_lightning.ruler.fwe import FrequentWords
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.task_generator import OfficialSteps
from lrsa_lightning.ruler.tasks import Setting
from tests.ruler import test_niah as niah
from tests.ruler import test_qa as qa
from tests.ruler import test_vt as vt
from tests.ruler import test_word_lists as lists
from tests.ruler.conftest import between, count_tokens

# The tasks whose text is in the singular.
SINGLE = [task for task in niah.SPECS if task not in ("niah_multivalue", "niah_multiquery")]


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers in the order that Random(seed).shuffle gives."""
    order = list(range(count))
    Random(seed).shuffle(order)
    return order


@pytest.fixture
def official(samples):
    def make(task: str, max_length: int, num_samples: int, **keys) -> list[dict]:
        return samples(task, max_length, num_samples, official_compat=True, **keys)

    return make


@pytest.mark.parametrize("seed", [42, 1])
def test_needles_have_the_same_order_in_all_samples(official, seed):
    for sample in official("niah_multivalue", 8192, 8, seed=seed):
        values = [value for _, value in niah.parse("niah_multivalue", sample)[2]]
        # Outputs are in the order drawn.
        assert [sample["outputs"].index(value) for value in values] == shuffled(4, seed)
    assert shuffled(4, 42) == [2, 1, 3, 0]


@pytest.mark.parametrize("max_length", [2048, 4096])
def test_gold_documents_have_the_same_place_in_all_samples_of_a_size(official, max_length):
    sizes = Counter()
    for sample in official("qa_1", max_length, 40):
        query, documents = qa.parse(sample)
        # The gold document is drawn first.
        assert documents.index(qa.SQUAD[query][0]) == shuffled(len(documents), 42).index(0)
        sizes[len(documents)] += 1
    assert max(sizes.values()) > 1


def test_own_paragraphs_have_the_same_places_in_all_samples_of_a_size(official):
    for sample in official("qa_2", 4096, 16):
        query, documents = qa.parse(sample)
        own, _ = qa.HOTPOTQA[query]
        order = shuffled(len(documents), 42)
        assert [text in own for text in documents] == [number < len(own) for number in order]


@pytest.mark.parametrize(("task", "questions"), [("qa_1", qa.SQUAD), ("qa_2", qa.HOTPOTQA)])
def test_questions_are_in_file_order(official, task, questions):
    samples = official(task, 4096, len(questions))
    assert [qa.parse(sample)[0] for sample in samples] == [*questions]


def pattern(words: list[str]) -> tuple[int, ...]:
    """Which places hold the same word."""
    first = {}
    return tuple(first.setdefault(word, len(first)) for word in words)


def cwe_patterns(sample: dict) -> tuple:
    example, _, words = lists.parse_cwe(sample)
    return pattern(example), pattern(words)


def fwe_patterns(sample: dict) -> tuple:
    return (pattern(between(sample["input"], lists.FWE_HEAD, lists.FWE_QUESTION).split(" ")),)


@pytest.mark.parametrize(("task", "patterns"), [("cwe", cwe_patterns), ("fwe", fwe_patterns)])
def test_words_have_the_same_order_in_all_samples_of_a_size(samples, official, task, patterns):
    def orders(rows: list[dict]) -> dict[int, set]:
        """Of each list's length."""
        found = {}
        for row in rows:
            for order in patterns(row):
                found.setdefault(len(order), []).append(order)
        return {size: {*orders} for size, orders in found.items() if len(orders) > 1}

    assert {len(found) for found in orders(official(task, 2048, 12)).values()} == {1}
    assert all(len(found) > 1 for found in orders(samples(task, 2048, 12)).values())


def test_the_list_is_shuffled_by_the_seed(official):
    """Ten words six times, then the others: as the official code lines them up before it shuffles."""
    for sample in official("cwe", 2048, 4):
        _, _, words = lists.parse_cwe(sample)
        common = sample["outputs"]
        order = shuffled(len(words), 42)
        assert [words[order.index(i)] for i in range(60)] == common * 6


@pytest.mark.parametrize("template", ["base", "chatml"])
@pytest.mark.parametrize("official_compat", [False, True])
@pytest.mark.parametrize("task", [*niah.SPECS, "vt"])
def test_the_singular_edit_reaches_the_chat_template(tokenizer, source_files, task, official_compat, template):
    system = "You are a helpful assistant. Some answers are all you need."
    chatty = copy.copy(tokenizer)
    chatty.chat_template = "<|im_start|>system\n" + system + "<|im_end|>\n" + tokenizer.chat_template
    keys = {**source_files, "template": template, "official_compat": official_compat}
    (sample,) = make_samples(task, chatty, 4096, 1, **keys)
    edited = official_compat and task in SINGLE
    expected = "You is a helpful assistant. A answer is you need." if edited else system
    found = sample["input"].startswith("<|im_start|>system\n" + expected + "<|im_end|>\n<|im_start|>user\n")
    assert found == (template == "chatml")


def size_of(task: str, sample: dict) -> int:
    """In the official code's units."""
    if task == "vt":
        return len(vt.parse(sample)[3]) - 5
    if task == "cwe":
        return len(set(lists.parse_cwe(sample)[2]))
    if task.startswith("qa"):
        return len(qa.parse(sample)[1])
    context = niah.parse(task, sample)[0]
    if niah.SPECS[task].haystack != "essay":
        return context.count("\n")
    return len(" ".join(piece for piece in niah.parse_essay(task, context)[0] if piece).split(" "))


# Units taken away where a draw is too long: 500 words, 25 or 5 lines, 10 or 5 lines, 10 words, 10 documents.
STEPS = [
    *[(task, 4096, 500) for task in niah.ESSAY_TASKS],
    *[(task, 4096, 25) for task in ("niah_single_1", "niah_multikey_2", "niah_multikey_3")],
    *[(task, 2048, 5) for task in ("niah_single_1", "niah_multikey_2", "niah_multikey_3")],
    *[("vt", 4096, 10), ("vt", 2048, 5), ("cwe", 2048, 10), ("cwe", 8192, 10), ("qa_1", 4096, 10), ("qa_2", 4096, 10)],
]


@pytest.mark.parametrize(("task", "max_length", "step"), STEPS)
def test_sizes_differ_by_coarse_steps(official, task, max_length, step):
    sizes = [size_of(task, sample) for sample in official(task, max_length, 12)]
    assert {(max(sizes) - size) % step for size in sizes} == {0}


@pytest.mark.parametrize(("task", "max_length", "step"), STEPS)
def test_steps(word_tokenizer, source_files, task, max_length, step):
    """The check above passes on samples all of a size."""

    def count(text: str) -> int:
        return count_tokens(word_tokenizer, text)

    setting = Setting(max_length, max_length - 128, Sources(**source_files), count, official_compat=True)
    steps = TASKS[task].make(setting).official_steps()
    assert steps.step == step
    assert (steps.probe, steps.most) == ((4096, 2) if task == "cwe" else (step, 3))
    assert (480 < steps.beside <= 500) if task == "vt" else steps.beside == 0


def test_fwe_shrinks_by_a_thirty_second(official):
    assert FrequentWords(4046).official_steps() == OfficialSteps(4046 // 32, 4046 // 6, most=None)
    budget = 4096 - 50
    counts = []
    for sample in official("fwe", 4096, 12):
        words = between(sample["input"], lists.FWE_HEAD, lists.FWE_QUESTION).split(" ")
        counts.append(sorted(Counter(words).values(), reverse=True))
    zeta = math.pi**2 / 6
    # Sizes N = M//6 + n * (M//32) explain the counts.
    sizes = [budget // 6 + n * (budget // 32) for n in range(-5, 40)]
    expected = [[c for k in range(1, budget // 50 + 1) if (c := int(size * k**-2 / zeta))] for size in sizes]
    assert all(found in expected for found in counts)


@pytest.mark.parametrize(("task", "max_length"), [("niah_multikey_2", 4096), ("vt", 4096), ("qa_1", 4096)])
def test_the_bisection_finds_more_than_the_coarse_steps(official, task, max_length):
    """Fits are close to the budget unless a draw was too long: at least one is."""
    assert max(sample["length"] for sample in official(task, max_length, 12)) > 0.97 * max_length


def test_samples_do_not_depend_on_how_many_there_are(official):
    assert official("niah_multikey_2", 2048, 2) == official("niah_multikey_2", 2048, 5)[:2]
    assert official("niah_multikey_2", 2048, 2, seed=1) != official("niah_multikey_2", 2048, 2)


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize(("task", "max_length"), [("niah_single_2", 2048), ("vt", 1024), ("cwe", 4096), ("qa_2", 1024)])
def test_a_length_that_cannot_hold_the_least_step_is_refused(tokenizer, source_files, task, max_length):
    """Where the official code draws for ever; without official_compat essays of fewer than 500 words may do."""
    with pytest.raises(InputError, match=f"{task} at length {max_length}: sample 0 does not fit"):
        make_samples(task, tokenizer, max_length, 1, official_compat=True, **source_files)


class CountingTokenizer:
    """Counts how often it is asked."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.eos_token = tokenizer.eos_token
        self.calls = 0

    def __call__(self, text: str, **keys):
        self.calls += 1
        assert self.calls < 60, "tokenised 60 times for a single sample"
        return self._tokenizer(text, **keys)


def test_the_search_is_short_where_it_meets_the_end_of_the_word_pool(word_tokenizer):
    """7300 of 8166 words fit; the bisection's upper bound of twice as many is beyond the pool."""
    counting = CountingTokenizer(word_tokenizer)
    (sample,) = make_samples("cwe", counting, 45000, 1, official_compat=True)
    assert 0.99 * 45000 < count_tokens(word_tokenizer, sample["input"]) < 45000
