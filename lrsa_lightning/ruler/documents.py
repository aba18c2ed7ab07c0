"""Questions about documents, as RULER reads them from SQuAD and HotpotQA (scripts/data/synthetic/qa.py)."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """One question; documents are numbers in `Questions.documents`.

    Attributes:
        query: the question.
        outputs: every annotated answer, duplicates kept.
        gold: documents that hold the answer, and HotpotQA's distractors.
        related: the other paragraphs of SQuAD's article, the first documents to add.
    """

    query: str
    outputs: list[str]
    gold: list[int]
    related: list[int]


@dataclass(frozen=True)
class Questions:
    """A data set: its questions in the file's order and its distinct documents, sorted."""

    questions: list[Question]
    documents: list[str]


def read_squad(content: dict) -> Questions:
    """The answerable questions of SQuAD v2.0.

    Raises:
        ValueError: a value is no text, a question has no answer, or there is no question. A missing key or one of
            another type raises KeyError, TypeError or AttributeError.
    """
    articles = [[_text(paragraph["context"]) for paragraph in article["paragraphs"]] for article in content["data"]]
    documents = sorted({text for article in articles for text in article})
    number = {text: i for i, text in enumerate(documents)}
    questions = []
    for article, texts in zip(content["data"], articles, strict=True):
        numbers = [number[text] for text in texts]
        for paragraph in article["paragraphs"]:
            gold = number[paragraph["context"]]
            related = [i for i in dict.fromkeys(numbers) if i != gold]
            questions += [
                Question(_text(qa["question"]), [_text(answer["text"]) for answer in qa["answers"]], [gold], related)
                for qa in paragraph["qas"]
                if not qa["is_impossible"]
            ]
    return _answered(Questions(questions, documents))


def read_hotpotqa(content: list[dict]) -> Questions:
    """All questions of HotpotQA, each with its gold paragraphs and its distractors.

    Raises:
        ValueError: as `read_squad`, or a question has no paragraphs.
    """
    texts = [[f"{_text(title)}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in content]
    documents = sorted({text for own in texts for text in own})
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(_text(row["question"]), [_text(row["answer"])], [number[text] for text in own], [])
        for row, own in zip(content, texts, strict=True)
    ]
    return _answered(Questions(questions, documents))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a text belongs")
    return value


def _answered(data: Questions) -> Questions:
    if not data.questions:
        raise ValueError("0 questions that have an answer")
    for question in data.questions:
        if not question.outputs or not question.gold:
            raise ValueError(f"the question {question.query!r} has no {'document' if question.outputs else 'answer'}")
    return data
