"""Questions about documents among other documents (scripts/data/synthetic/qa.py, constants.py)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import gcd
from random import Random

from lrsa_lightning.ruler.documents import Question, Questions
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
_TEMPLATE = (
    f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{{context}}\n\n{_INSTRUCTION}\n\nQuestion: {{query}}"
)
_ANSWER_PREFIX = " Answer:"
# After so many documents in a row that do not fit, the context counts as full.
_MOST_MISSES = 32


@dataclass(frozen=True)
class QuestionAnswering(TaskGenerator):
    """A question, the documents that answer it, and other documents up to the length. Documents repeat if need be.

    Attributes:
        data: the data set.
        count_tokens: counts a text's tokens.
    """

    data: Questions
    count_tokens: Callable[[str], int]
    _sizes: dict[int, int] = field(default_factory=dict, repr=False)

    def items(self) -> list[int]:
        """All questions, with neighbours far apart: the file's first 500 are from 4 of SQuAD's 35 articles."""
        count = len(self.data.questions)
        stride = max(1, int(count * 0.618))
        while gcd(stride, count) != 1:
            stride += 1
        return [i * stride % count for i in range(count)]

    def generate(self, draws: Draws, units: int) -> Text:
        """Units are tokens of other documents than the question's own."""
        question = self.data.questions[draws.item]
        return _text(self.data, question, draws.shuffled(self._fill(question, units, draws.rng)))

    def _fill(self, question: Question, room: int, rng: Random) -> list[int]:
        """The question's documents and as many others as fit, related ones first."""
        chosen = list(question.gold)
        for group in self._others(question, rng):
            added, left_out, room = self._add(group, room)
            if left_out:
                return chosen + self._fill_up(added, left_out, room)
            chosen += added
        return chosen

    def _add(self, group: list[int], room: int) -> tuple[list[int], list[int], int]:
        """The documents of a group that fit one after the other, those that do not, and the room left."""
        added, left_out, misses = [], [], 0
        for number in group:
            if (size := self._size(number)) <= room:
                added.append(number)
                room, misses = room - size, 0
            else:
                left_out.append(number)
                if (misses := misses + 1) == _MOST_MISSES:
                    break
        return added, left_out, room

    def _fill_up(self, added: list[int], left_out: list[int], room: int) -> list[int]:
        """Swaps one document for the longest other one that fits."""
        gains = [(self._size(new) - self._size(old), old, new) for old in added for new in left_out]
        gain, old, new = max((gain for gain in gains if gain[0] <= room), default=(0, None, None))
        return [new if number == old else number for number in added] if gain > 0 else added

    def _others(self, question: Question, rng: Random) -> Iterator[list[int]]:
        """Groups of documents to add; each is used up before the next one."""
        yield rng.sample(question.related, len(question.related))
        everything = range(len(self.data.documents))
        own = {*question.gold, *question.related}
        yield [i for i in rng.sample(everything, len(everything)) if i not in own]
        while True:
            yield rng.sample(everything, len(everything))

    def _size(self, number: int) -> int:
        if number not in self._sizes:
            self._sizes[number] = self.count_tokens(f"Document 100:\n{self.data.documents[number]}\n\n")
        return self._sizes[number]


def _text(data: Questions, question: Question, numbers: list[int]) -> Text:
    context = "\n\n".join(
        f"Document {place}:\n{data.documents[number]}" for place, number in enumerate(numbers, start=1)
    )
    # HotpotQA gives each question two gold documents and distractors; the official format does not distinguish them.
    depth = [numbers.index(question.gold[0]) / len(numbers)] if len(question.gold) == 1 else []
    return Text(
        user=_TEMPLATE.format(context=context, query=question.query),
        answer_prefix=_ANSWER_PREFIX,
        outputs=question.outputs,
        depths=depth * len(question.outputs),
    )
