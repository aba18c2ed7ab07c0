"""The evaluator: which cache a budget means, what it scores, and that it leaves the model as it was."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.ruler import evaluator as module
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from tests.conftest import make_model


@pytest.fixture
def evaluator(tokenizer):
    return RulerEvaluator(tokenizer, ["niah_single_1"], [640], num_samples=5, batch_size=2)


def test_budgets_are_the_papers(evaluator):
    assert isinstance(evaluator.mode(32768, 1.0), Vanilla)
    mode = evaluator.mode(32768, 0.25)
    assert (mode.lag_size, mode.retention_ratio, mode.sink_size) == (1024, 0.25, 16)


def test_perfect_answers_score_100_and_ranks_share_the_samples(evaluator, tokenizer, monkeypatch):
    def answer(model, input_ids, mode, max_new_tokens, lengths, eos_token_id):
        assert max_new_tokens == 128
        texts = [tokenizer.decode(row[:length]) for row, length in zip(input_ids, lengths, strict=True)]
        values = [" " + text.split(" is: ")[1][:7] for text in texts]
        return torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(tokenizer(value)["input_ids"]) for value in values], batch_first=True
        )

    monkeypatch.setattr(module, "generate", answer)
    model = make_model(vocab_size=len(tokenizer))
    assert [score.percent for score in evaluator.evaluate(model)] == [100.0, 100.0, 100.0]
    shares = [next(evaluator.evaluate(model, rank, 2)) for rank in range(2)]
    assert [share.count for share in shares] == [3, 2]
    assert sum(share.total for share in shares) == 5


def test_the_model_is_as_it_was(evaluator, tokenizer):
    model = make_model(vocab_size=len(tokenizer)).train()
    mode = LRSA(lag_size=8, sink_size=4)
    mode.install(model)
    state = torch.get_rng_state()
    scores = list(evaluator.evaluate(model))
    assert [score.name for score in scores] == [f"ruler/niah_single_1/640/r{r}" for r in ("1", "0.5", "0.25")]
    assert model.training
    assert model.config._attn_implementation == mode.registry_key()
    assert torch.equal(torch.get_rng_state(), state)
