"""Questions about documents (qa_1: SQuAD, qa_2: HotpotQA) against RULER's texts and its choice of documents."""

import json
import re
from itertools import pairwise

import pytest

from lrsa_lightning.ruler import make_samples
from tests.ruler.conftest import AROUND, between, hotpotqa_content, squad_content, user_turn

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
HEAD = INSTRUCTION + "\n\nThe following are given documents.\n\n"


def squad_questions() -> dict[str, tuple[str, list[str], set[str]]]:
    """The gold paragraph, the answers and the article's other paragraphs of each answerable question."""
    questions = {}
    for article in squad_content()["data"]:
        texts = {paragraph["context"] for paragraph in article["paragraphs"]}
        for paragraph in article["paragraphs"]:
            gold = paragraph["context"]
            for qa in paragraph["qas"]:
                if not qa["is_impossible"]:
                    questions[qa["question"]] = gold, [answer["text"] for answer in qa["answers"]], texts - {gold}
    return questions


def hotpotqa_questions() -> dict[str, tuple[set[str], list[str]]]:
    """The own paragraphs and the answer of each question."""
    return {
        row["question"]: ({title + "\n" + "".join(texts) for title, texts in row["context"]}, [row["answer"]])
        for row in hotpotqa_content()
    }


SQUAD, HOTPOTQA = squad_questions(), hotpotqa_questions()
SQUAD_DOCUMENTS = {gold for gold, _, _ in SQUAD.values()} | {text for _, _, more in SQUAD.values() for text in more}
HOTPOTQA_DOCUMENTS = {text for own, _ in HOTPOTQA.values() for text in own}


def parse(sample: dict, template: str = "base") -> tuple[str, list[str]]:
    """The question and the documents, after a check of all else."""
    assert sample["answer_prefix"] == " Answer:"
    user = user_turn(sample, template)
    query = user[user.rindex("\n\nQuestion: ") + len("\n\nQuestion: ") :]
    context = between(user, HEAD, "\n\n" + INSTRUCTION + "\n\nQuestion: " + query)
    documents = re.split(r"(?:^|\n\n)Document \d+:\n", context)[1:]
    assert "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(documents, start=1)) == context
    return query, documents


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("max_length", [2048, 4096])
def test_squad(samples, max_length, template):
    has_others = set()
    for sample in samples("qa_1", max_length, 24, template):
        query, documents = parse(sample, template)
        gold, answers, related = SQUAD[query]
        assert sample["outputs"] == answers
        assert len(answers) == 3 > len(set(answers))
        assert sample["answer"] == f" {answers[0]}"
        assert documents.count(gold) == 1
        assert {*documents} <= SQUAD_DOCUMENTS
        assert len(documents) == len({*documents})
        assert sample["depths"] == [documents.index(gold) / len(documents)] * 3
        # The article's paragraphs are used up before others'.
        others = {*documents} - related - {gold}
        assert not others or related < {*documents}
        has_others.add(bool(others))
    assert has_others == {max_length == 4096}


@pytest.mark.parametrize("template", AROUND)
def test_hotpotqa(samples, template):
    num_documents = set()
    for sample in samples("qa_2", 4096, 20, template):
        query, documents = parse(sample, template)
        own, answers = HOTPOTQA[query]
        assert sample["outputs"] == answers
        assert own < {*documents} <= HOTPOTQA_DOCUMENTS
        assert len(documents) == len({*documents})
        assert sample["depths"] == []
        num_documents.add(len(own))
    assert num_documents == {4, 10}


@pytest.mark.parametrize(("task", "pool"), [("qa_1", SQUAD_DOCUMENTS), ("qa_2", HOTPOTQA_DOCUMENTS)])
def test_documents_repeat_where_there_are_no_more(word_tokenizer, source_files, task, pool):
    for sample in make_samples(task, word_tokenizer, 8192, 2, **source_files):
        _, documents = parse(sample)
        counts = [documents.count(text) for text in pool]
        assert len(documents) == sum(counts) > len(pool)
        assert max(counts) <= min(counts) + 2
        assert sample["length"] > 0.95 * 8192


@pytest.mark.parametrize(("task", "count"), [("qa_1", len(SQUAD)), ("qa_2", len(HOTPOTQA))])
def test_questions_are_strided_over_the_file(samples, task, count):
    """Each answerable question comes once; the first 16 are from all over the file."""
    order = list(SQUAD if task == "qa_1" else HOTPOTQA)
    numbers = [order.index(parse(sample)[0]) for sample in samples(task, 4096, count)]
    assert sorted(numbers) == list(range(count))
    assert {8 * number // count for number in numbers[:16]} == {*range(8)}
    assert min(abs(a - b) for a, b in pairwise(numbers)) > count / 4


def test_each_sample_has_its_own_order_of_documents(samples):
    """In the official code the gold document has one place in all samples of a size."""
    depths = [sample["depths"][0] for sample in samples("qa_1", 4096, 24)]
    assert min(depths) < 0.2
    assert max(depths) > 0.7
    assert len(set(depths)) > 8
    firsts = [documents[0] in HOTPOTQA[query][0] for query, documents in map(parse, samples("qa_2", 4096, 20))]
    assert {*firsts} == {True, False}


@pytest.fixture
def squad_with_long_ones(tmp_path):
    """12 questions, those with the numbers 3 and 4 about paragraphs of more than 2048 tokens."""

    def article(texts: list[str], numbers: range) -> dict:
        qas = [
            [{"question": f"Question {i}?", "is_impossible": False, "answers": [{"text": str(i)}]}] for i in numbers
        ] + [[]] * len(texts)
        return {"paragraphs": [{"context": t, "qas": q} for t, q in zip(texts, qas, strict=False)]}

    short = [f"Paragraph {i}." + " So it goes." * 10 for i in range(40)]
    long = [f"Paragraph {i}." + " Far too long." * 300 for i in range(2)]
    articles = [article(short[:30], range(3)), article(long, range(3, 5)), article(short[30:], range(5, 12))]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": articles}))
    return path


def test_questions_whose_documents_do_not_fit_are_skipped(tokenizer, squad_with_long_ones):
    samples = make_samples("qa_1", tokenizer, 2048, 10, squad=squad_with_long_ones)
    assert {parse(sample)[0] for sample in samples} == {f"Question {i}?" for i in range(12) if i not in (3, 4)}
    assert [sample["index"] for sample in samples] == list(range(10))
    assert all(sample["length"] <= 2048 for sample in samples)
    with pytest.raises(ValueError, match=r"qa_1 at length 2048: only 10 of 12 questions fit"):
        make_samples("qa_1", tokenizer, 2048, 11, squad=squad_with_long_ones)


def test_more_samples_than_questions_are_refused(tokenizer, source_files):
    with pytest.raises(ValueError, match=rf"qa_2 at length 4096: .*{len(HOTPOTQA)}.* questions"):
        make_samples("qa_2", tokenizer, 4096, len(HOTPOTQA) + 1, **source_files)


def test_a_file_without_answerable_questions_is_refused(tokenizer, tmp_path):
    qas = [{"question": "?", "is_impossible": True, "answers": []}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Text.", "qas": qas}]}]}))
    with pytest.raises(ValueError, match=r"0 .*questions"):
        make_samples("qa_1", tokenizer, 4096, 1, squad=path)
