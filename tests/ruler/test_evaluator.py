"""The evaluator: which cache a budget means, what it scores, and that it leaves the model as it was."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.ruler import evaluator as module
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.evaluator import RulerEvaluator, Share, answer_ends
from lrsa_lightning.ruler.teacher_forcing import teacher_force
from tests.conftest import make_model

TASK = "niah_single_1"


@pytest.fixture
def evaluator(tokenizer):
    samples = {(TASK, 640): make_samples(TASK, tokenizer, 640, 5)}
    return RulerEvaluator(tokenizer, samples, batch_size=2)


@pytest.fixture
def model(tokenizer):
    return make_model(vocab_size=len(tokenizer))


def all_records(evaluator, model, **arguments):
    return [record for batch in evaluator.evaluate(model, **arguments) for record in batch]


def test_budgets_are_the_papers(evaluator):
    assert isinstance(evaluator.mode(32768, "r1"), Vanilla)
    mode = evaluator.mode(32768, "r0.25")
    assert (mode.lag_size, mode.retention_ratio, mode.sink_size) == (1024, 0.25, 16)


def test_any_mode_can_be_scored_beside_the_budgets(tokenizer, model):
    samples = {(TASK, 640): make_samples(TASK, tokenizer, 640, 1)}
    window = LRSA(lag_size=32, scorer="window")
    evaluator = RulerEvaluator(tokenizer, samples, [1.0], modes={"window": window})
    assert evaluator.mode(640, "window") is window
    assert [record.budget for record in all_records(evaluator, model)] == ["r1", "window"]


def test_answers_are_scored_and_only_new_tokens_are_read(evaluator, tokenizer, model, monkeypatch):
    class PerfectPrompt:
        def __init__(self, model, input_ids, lengths, mode, num_pieces):
            self.cache = mode.make_cache(model.config)
            texts = [tokenizer.decode(row[:length]) for row, length in zip(input_ids, lengths, strict=True)]
            self.values = [" " + text.split(" is: ")[1][:7] for text in texts]

        def decode(self, max_new_tokens, ends, early_end):
            assert max_new_tokens == 128
            # What comes behind the end token belongs to nobody.
            rows = [tokenizer(value + tokenizer.eos_token + " 0000000")["input_ids"] for value in self.values]
            return torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)

    monkeypatch.setattr(module, "Prompt", PerfectPrompt)
    records = all_records(evaluator, model, teacher_forcing=False)
    assert [record.score for record in records] == [1.0] * 15
    assert all(record.prediction == " " + record.outputs[0] for record in records)
    assert [record.hits for record in records] == [[True]] * 15


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_the_samples_and_make_the_same_forward_passes(evaluator, model, tokenizer, world_size):
    def forward_passes(rank):
        calls = []
        hook = model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
        share = Share(rank, world_size, gather=list)
        found = all_records(evaluator, model, share=share)
        hook.remove()
        return len(calls), found

    expected = {(r.id, r.budget): (r.prediction, r.score) for r in all_records(evaluator, model)}
    counts, found = zip(*(forward_passes(rank) for rank in range(world_size)), strict=True)
    assert len(set(counts)) == 1
    together = [record for own in found for record in own]
    assert len(together) == 15
    assert {(r.id, r.budget): (r.prediction, r.score) for r in together} == expected


def test_rows_that_end_early_do_not_change_the_number_of_passes(evaluator, model, tokenizer):
    share = Share(0, 2)
    first = next(evaluator.evaluate(model, share=share))[0]
    end = tokenizer(first.prediction, add_special_tokens=False)["input_ids"][0]
    early = RulerEvaluator(tokenizer, evaluator.samples, batch_size=2, end_tokens=[end])
    counts = []
    for one in (evaluator, early):
        calls = []
        hook = model.get_decoder().register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        next(one.evaluate(model, share=share, teacher_forcing=False))
        hook.remove()
        counts.append(len(calls))
    assert counts[0] == counts[1] == 128


def test_what_is_done_is_left_out_and_stop_is_asked_before_each_budget(evaluator, model):
    done = {(f"{TASK}-640-42-{i}", "r1") for i in range(4)}
    answers = iter([False, False, True])
    records = all_records(evaluator, model, generation=False, done=done, stop=lambda: next(answers))
    ids = [f"{TASK}-640-42-{i}" for i in range(5)]
    assert [(r.id, r.budget) for r in records] == [(ids[4], "r1"), *((i, "r0.5") for i in ids)]


def test_the_model_is_as_it_was(evaluator, model):
    model.train()
    model.model.layers[0].eval()
    modes = [part.training for part in model.modules()]
    mode = LRSA(lag_size=8, sink_size=4)
    mode.install(model)
    state = torch.get_rng_state()
    assert len(all_records(evaluator, model)) == 15
    assert [part.training for part in model.modules()] == modes
    assert model.config._attn_implementation == mode.registry_key()
    assert torch.equal(torch.get_rng_state(), state)


def test_cache_bytes_shrink_with_the_budget(evaluator, model):
    sizes = {record.budget: record.kv_bytes for record in all_records(evaluator, model)}
    held = {budget: size / sizes["r1"] for budget, size in sizes.items()}
    assert 0.5 < held["r0.5"] < 0.62
    assert 0.25 < held["r0.25"] < 0.4


@pytest.mark.parametrize("mode", [Vanilla(), LRSA(lag_size=16, sink_size=4), LRSA(lag_size=16, retention_ratio=0.25)])
def test_teacher_forcing_says_what_greedy_decoding_would_write(model, tokenizer, mode):
    prompts = [tokenizer(row["input"])["input_ids"] for row in make_samples(TASK, tokenizer, 600, 3)]
    prompts = [prompt[: len(prompt) - 40 * i] for i, prompt in enumerate(prompts)]
    written = [generate(model, torch.tensor([prompt]), mode, 6, eos_token_id=[])[0].tolist() for prompt in prompts]
    others = [[*answer[:4], (answer[4] + 1) % len(tokenizer), answer[5]] for answer in written]
    for answers, expected in ((written, True), (others, False)):
        rated = teacher_force(model, mode, prompts, answers, width=640)
        assert [answer.exact_match for answer in rated] == [expected] * 3
    alone = [teacher_force(model, mode, [p], [a], width=1)[0].nll for p, a in zip(prompts, others, strict=True)]
    assert [answer.nll for answer in rated] == pytest.approx(alone, rel=1e-4)
    ids = torch.tensor([prompts[0] + others[0]])
    with mode.installed(model):
        logits = model(ids, use_cache=False).logits.detach()[0, len(prompts[0]) - 1 : -1]
    expected = -logits.log_softmax(-1).gather(1, torch.tensor(others[0])[:, None]).mean()
    assert rated[0].nll == pytest.approx(expected.item(), rel=1e-4)


def test_the_templates_end_token_ends_an_answer(tokenizer):
    assert answer_ends("chatml", tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert answer_ends("base", tokenizer) == [tokenizer.eos_token_id]
