"""Rows with a question about one document, or a few, among many."""

from dataclasses import dataclass
from random import Random

from lrsa_lightning.recipe.rows import Draw, Row
from lrsa_lightning.ruler.documents import Question, Questions

_HEADS = ("Passage {}:\n{}", "[{}] {}", "Source {}: {}", "Text {}\n{}", "{}. {}")
_QUESTIONS = (
    "{}",
    "Question about the texts above: {}",
    "One of these texts answers this question. {}",
    "Read the texts and answer in a few words: {}",
)
_ANSWERS = ("{}", "{}", "{}", "{}.")


@dataclass(frozen=True)
class QuestionDraw(Draw):
    """A question, its own documents, and so many others, of its article first.

    Attributes:
        data: the source.
        question: one of it.
        others: numbers of documents to add, in this order.
        seed: of places and wording.
    """

    data: Questions
    question: Question
    others: list[int]
    seed: int

    @classmethod
    def of(cls, data: Questions, question: Question, rng: Random) -> "QuestionDraw":
        """Draws the other documents."""
        own = {*question.gold, *question.related}
        rest = [number for number in range(len(data.documents)) if number not in own]
        # Half of the rows mix the documents of the article with all others: its own would always fill a short row.
        groups = [question.related, rest] if rng.random() < 0.5 else [[*question.related, *rest]]
        others = [number for group in groups for number in rng.sample(group, len(group))]
        return cls(data, question, others, rng.getrandbits(63))

    @property
    def max_units(self) -> int:
        return len(self.others)

    def row(self, units: int) -> Row:
        rng = Random(self.seed)
        head, question, answer = (rng.choice(forms) for forms in (_HEADS, _QUESTIONS, _ANSWERS))
        numbers = [*self.question.gold, *self.others[:units]]
        rng.shuffle(numbers)
        texts = (head.format(place, self.data.documents[number]) for place, number in enumerate(numbers, start=1))
        return {
            "document": "\n\n".join(texts),
            "question": question.format(self.question.query.strip()),
            "answer": answer.format(self.question.outputs[0].strip()),
        }
