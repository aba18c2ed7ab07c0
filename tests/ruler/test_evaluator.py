"""The evaluator: the cache of a budget, the scores, the ranks, and an unchanged model afterwards."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.data.template import answer_ends
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler import scorer as module
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.teacher_forcing import rate_after, teacher_force
from lrsa_lightning.ruler.time_limit import TimeLimit
from tests.ruler.conftest import TASK, all_records


def test_budgets_have_the_sizes_of_the_paper(evaluator):
    assert isinstance(evaluator.mode(32768, "r1"), Vanilla)
    mode = evaluator.mode(32768, "r0.25")
    assert (mode.lag_size, mode.retention_ratio, mode.sink_size) == (1024, 0.25, 16)


def test_any_mode_can_be_scored_beside_the_budgets(tokenizer, model):
    samples = {(TASK, 640): make_samples(TASK, tokenizer, 640, 1)}
    window = LRSA(lag_size=32, scorer="window")
    evaluator = RulerEvaluator(tokenizer, samples, [1.0], modes={"window": window})
    assert evaluator.mode(640, "window") is window
    assert [record.budget for record in all_records(evaluator, model)] == ["r1", "window"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("NPU out of memory")])
def test_a_batch_that_the_memory_is_too_full_for_is_scored_in_parts(error, tokenizer, model, monkeypatch, caplog):
    """Another process may take memory at any time: what is scored already is not lost for it."""
    samples = {(TASK, 640): make_samples(TASK, tokenizer, 640, 5)}
    evaluator = RulerEvaluator(tokenizer, samples, [1.0, 0.5], batch_size=5)
    expected, made = all_records(evaluator, model), module.Prompt

    def full_with_three(model, input_ids, *rest):
        if len(input_ids) > 2:
            raise error
        return made(model, input_ids, *rest)

    monkeypatch.setattr(module, "Prompt", full_with_three)
    got = all_records(evaluator, model)
    assert [(record.id, record.prediction) for record in got] == [(r.id, r.prediction) for r in expected]
    assert [record.nll for record in got] == pytest.approx([record.nll for record in expected], rel=1e-5)
    assert "5 prompts at a time, half as many follow" in caplog.text
    monkeypatch.setattr(module, "Prompt", lambda *_: full_with_three(model, [0] * 3))
    with pytest.raises(RuntimeError, match="out of memory"):  # one prompt alone is too much
        all_records(evaluator, model)


def test_answers_are_scored_and_only_new_tokens_are_read(evaluator, tokenizer, model, monkeypatch):
    class PerfectPrompt:
        def __init__(self, model, input_ids, lengths, mode, num_pieces):
            self.cache = mode.make_cache(model.config)
            texts = [tokenizer.decode(row[:length]) for row, length in zip(input_ids, lengths, strict=True)]
            self.values = [" " + text.split(" is: ")[1][:7] for text in texts]

        def decode(self, max_new_tokens, ends, early_end):
            assert max_new_tokens == 128
            # Tokens after the end token do not count.
            rows = [tokenizer(value + tokenizer.eos_token + " 0000000")["input_ids"] for value in self.values]
            return torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)

    monkeypatch.setattr(module, "Prompt", PerfectPrompt)
    records = all_records(evaluator, model, teacher_forcing=False)
    assert [record.score for record in records] == [1.0] * 15
    assert all(record.prediction == " " + record.outputs[0] for record in records)
    assert [record.hits for record in records] == [[True]] * 15


def test_generation_and_teacher_forcing_read_the_input_and_the_answer_prefix(evaluator, tokenizer, model, monkeypatch):
    read = {"generation": [], "rating": [], "answers": []}

    class Read(module.Prompt):
        def __init__(self, model, input_ids, lengths, mode, num_pieces):
            read["generation"] += [ids[:length].tolist() for ids, length in zip(input_ids, lengths, strict=True)]
            super().__init__(model, input_ids, lengths, mode, num_pieces)

    def rate(model, mode, prompts, answers, width):
        read["rating"] += prompts
        read["answers"] += answers
        return teacher_force(model, mode, prompts, answers, width)

    def rate_prefilled(model, prompt, answers):
        assert [row["answer"] for row in rows[len(after) : len(after) + len(answers)]] == [
            tokenizer.decode(ids) for ids in answers
        ]
        after.extend(rate_after(model, prompt, answers))
        return after[-len(answers) :]

    after, rows = [], [row for _ in evaluator.budgets for row in by_length(evaluator.samples[TASK, 640])]
    monkeypatch.setattr(module, "Prompt", Read)
    monkeypatch.setattr(module, "teacher_force", rate)
    monkeypatch.setattr(module, "rate_after", rate_prefilled)
    all_records(evaluator, model)
    assert len(after) == len(rows)
    all_records(evaluator, model, generation=False)
    prompts = [row["input"] + row["answer_prefix"] for row in rows]
    assert all(row["answer_prefix"].endswith(" is") for row in rows)
    texts = {what: [tokenizer.decode(ids) for ids in own] for what, own in read.items()}
    assert texts == {"generation": prompts, "rating": prompts, "answers": [row["answer"] for row in rows]}


def by_length(rows):
    return sorted(rows, key=lambda row: row["length"])


def predict(monkeypatch, answers):
    """Lets every row of a batch be answered by the ids or texts given, in turn."""
    answers = iter(answers)

    class Answered(module.Prompt):
        def decode(self, max_new_tokens, ends, early_end):
            rows = [torch.tensor(next(answers)) for _ in range(self.batch)]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        def __init__(self, model, input_ids, lengths, mode, num_pieces):
            self.batch = len(lengths)
            super().__init__(model, input_ids, lengths, mode, num_pieces)

    monkeypatch.setattr(module, "Prompt", Answered)


def test_the_tasks_metric_scores_and_each_expected_string_is_a_hit_of_its_own(tokenizer, model, monkeypatch, samples):
    rows = samples("qa_1", 1024, 1)
    expected = rows[0]["outputs"]
    assert expected[0] == expected[1] != expected[2]
    predict(monkeypatch, [tokenizer(f" {expected[0]}")["input_ids"]])
    (record,) = all_records(RulerEvaluator(tokenizer, {("qa_1", 1024): rows}, [1.0]), model, teacher_forcing=False)
    assert record.score == 1  # one of the strings is enough: match_part
    assert record.hits == [True, True, False]


@pytest.mark.parametrize("place", ["argument", "tokenizer", "model"])
def test_every_end_token_ends_an_answer_and_special_tokens_are_no_text(tokenizer, model, monkeypatch, place):
    rows = {(TASK, 640): make_samples(TASK, tokenizer, 640, 1)}
    end = tokenizer("7", add_special_tokens=False)["input_ids"][0]
    evaluator = RulerEvaluator(tokenizer, rows, [1.0], end_tokens=[end] if place == "argument" else ())
    if place == "tokenizer":
        end = tokenizer.eos_token_id
    if place == "model":
        model.generation_config.eos_token_id = [end, 5]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    predict(monkeypatch, [[start, *tokenizer("green")["input_ids"], end, *tokenizer("0000000")["input_ids"]]])
    (record,) = all_records(evaluator, model, teacher_forcing=False)
    assert record.prediction == "green"


def test_a_prompt_is_prefilled_once_to_be_answered_and_rated(evaluator, model):
    fed = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: fed.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    records = next(evaluator.evaluate(model))
    hook.remove()
    prompt, rating, *steps = fed
    assert prompt > 400
    assert rating < 30
    assert steps == [1] * 127
    rated = next(evaluator.evaluate(model, generation=False))
    assert [r.nll for r in records] == pytest.approx([r.nll for r in rated], rel=1e-4)
    assert [r.exact_match for r in records] == [r.exact_match for r in rated]


def test_cache_bytes_and_fill_are_those_of_one_sample(evaluator, tokenizer, model):
    records = [record for record in all_records(evaluator, model) if record.budget == "r1"]
    rows = by_length(evaluator.samples[TASK, 640])
    lengths = [len(tokenizer(row["input"] + row["answer_prefix"])["input_ids"]) for row in rows]
    longest = [max(lengths[i : i + 2]) for i in (0, 0, 2, 2, 4)]  # of a batch of two
    config = model.config
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * 4 * config.hidden_size // 4
    assert [record.kv_bytes for record in records] == [length * each for length in longest]
    assert [record.fill for record in records] == [(length + 128) / 640 for length in lengths]


def test_the_model_is_evaluated_in_evaluation_mode(evaluator, model):
    model.train()
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(lambda *_: seen.append(model.get_decoder().training))
    next(evaluator.evaluate(model))
    hook.remove()
    assert seen
    assert not any(seen)
    assert model.training


def test_the_seconds_of_a_part_add_up(monkeypatch):
    ticks = iter([0.0, 1.5, 10.0, 12.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    watch = module.Stopwatch()
    for _ in range(2):
        with watch.time("prefill", torch.device("cpu")):
            pass
    assert watch.seconds == {"prefill": 3.5}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_split_the_samples_and_make_the_same_forward_passes(evaluator, model, tokenizer, world_size):
    def forward_passes(rank):
        calls = []
        hook = model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
        found = all_records(evaluator, model, ranks=Ranks(rank, world_size, gather=list))
        hook.remove()
        return len(calls), found

    expected = {(r.id, r.budget): (r.prediction, r.score) for r in all_records(evaluator, model)}
    counts, found = zip(*(forward_passes(rank) for rank in range(world_size)), strict=True)
    assert len(set(counts)) == 1
    together = [record for own in found for record in own]
    assert len(together) == 15
    assert {(r.id, r.budget): (r.prediction, r.score) for r in together} == expected


def test_rows_that_end_early_do_not_change_the_number_of_passes(evaluator, model, tokenizer):
    ranks = Ranks(0, 2)
    first = next(evaluator.evaluate(model, ranks=ranks))[0]
    end = tokenizer(first.prediction, add_special_tokens=False)["input_ids"][0]
    early = RulerEvaluator(tokenizer, evaluator.samples, batch_size=2, end_tokens=[end])
    counts = []
    for one in (evaluator, early):
        calls = []
        hook = model.get_decoder().register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        next(one.evaluate(model, ranks=ranks, teacher_forcing=False))
        hook.remove()
        counts.append(len(calls))
    assert counts[0] == counts[1] == 128


def test_samples_with_a_record_are_left_out(evaluator, model):
    done = {(f"{TASK}-640-42-{i}", "r1") for i in range(4)} | {(f"{TASK}-640-42-{i}", "r0.5") for i in range(5)}
    groups = evaluator.groups(Ranks(), evaluator.batch_sizes(model, Ranks()), done)
    records = evaluator.in_order(all_records(evaluator, model, generation=False, groups=groups))
    ids = [f"{TASK}-640-42-{i}" for i in range(5)]
    assert [(r.id, r.budget) for r in records] == [(ids[4], "r1"), *((i, "r0.25") for i in ids)]


def test_what_there_is_no_time_for_is_left_out(evaluator, model):
    class Limit(TimeLimit):
        """Has time for all groups but the second one, and in the third one for the first batch."""

        answers = iter([True, True, False, True, True, False])

        def admits(self, batches=()):
            return next(self.answers)

    cells = evaluator.groups(Ranks(), {(640, budget): 1 for budget in evaluator.budgets})
    batches = [batch for group in cells for batch in group]
    groups = [batches[:1], batches[1:2], batches[2:4]]
    records = all_records(evaluator, model, generation=False, groups=groups, limit=Limit())
    assert [(r.id, r.budget) for r in records] == [(b.rows[0]["id"], b.budget) for b in (batches[0], batches[2])]


@pytest.mark.parametrize("generation", [True, False])
def test_samples_of_several_tasks_in_one_batch_are_scored_as_if_alone(tokenizer, model, generation):
    tasks = [TASK, "fwe"]  # of 128 and 50 new tokens
    rows = {(task, 1024): make_samples(task, tokenizer, 1024, 2) for task in tasks}
    evaluator = RulerEvaluator(tokenizer, rows, [1.0, 0.5], batch_size=3)
    groups = evaluator.groups(Ranks(), evaluator.batch_sizes(model, Ranks(), tasks_share=True), tasks_share=True)
    mixed = evaluator.in_order(all_records(evaluator, model, generation=generation, groups=groups))
    alone = evaluator.in_order(all_records(evaluator, model, generation=generation))
    assert [(r.id, r.budget, r.prediction, r.score) for r in mixed] == [
        (r.id, r.budget, r.prediction, r.score) for r in alone
    ]
    assert [r.nll for r in mixed] == pytest.approx([r.nll for r in alone], rel=1e-4)
    assert [r.id for r in mixed if r.budget == "r0.5"] == [row["id"] for own in rows.values() for row in own]


def test_an_evaluation_leaves_the_model_unchanged(evaluator, model):
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


def test_the_templates_end_token_ends_an_answer(tokenizer):
    assert answer_ends("chatml", tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert answer_ends("base", tokenizer) == [tokenizer.eos_token_id]
