"""The evaluator: the cache of a budget, the scores, the batches, and an unchanged model afterwards."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler import batch_sizes, make_samples
from lrsa_lightning.ruler import scorer as module
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.scorer import answer_ends
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

    monkeypatch.setattr(module, "Prompt", Read)
    monkeypatch.setattr(module, "teacher_force", rate)
    all_records(evaluator, model)
    rows = [row for _ in evaluator.budgets for row in evaluator.samples[TASK, 640]]
    prompts = [row["input"] + row["answer_prefix"] for row in rows]
    assert all(row["answer_prefix"].endswith(" is") for row in rows)
    texts = {what: [tokenizer.decode(ids) for ids in own] for what, own in read.items()}
    assert texts == {"generation": prompts, "rating": prompts, "answers": [row["answer"] for row in rows]}


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


def test_cache_bytes_and_fill_are_those_of_one_sample(evaluator, tokenizer, model):
    records = [record for record in all_records(evaluator, model) if record.budget == "r1"]
    rows = evaluator.samples[TASK, 640]
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


def test_samples_with_a_record_are_left_out_and_stop_is_called_before_each_budget(evaluator, model):
    done = {(f"{TASK}-640-42-{i}", "r1") for i in range(4)}
    answers = iter([False, False, True])
    records = all_records(evaluator, model, generation=False, done=done, stop=lambda: next(answers))
    ids = [f"{TASK}-640-42-{i}" for i in range(5)]
    assert [(r.id, r.budget) for r in records] == [(ids[4], "r1"), *((i, "r0.5") for i in ids)]


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


def test_rows_are_padded_to_one_width_and_rated_in_float32(model, tokenizer):
    prompt, answer = tokenizer("The grass is")["input_ids"], tokenizer(" green.")["input_ids"]
    shapes = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    teacher_force(model, Vanilla(), [prompt], [answer], width=64)
    hook.remove()
    assert shapes == [(1, 64)]
    model.bfloat16()
    (rated,) = teacher_force(model, Vanilla(), [prompt], [answer], width=1)
    with Vanilla().installed(model), torch.no_grad():
        logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    assert rated.nll == pytest.approx(expected, rel=1e-6)  # in bfloat16 it has three digits


def test_the_templates_end_token_ends_an_answer(tokenizer):
    assert answer_ends("chatml", tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert answer_ends("base", tokenizer) == [tokenizer.eos_token_id]


def test_the_estimate_is_the_size_of_the_cache_of_a_prompt_of_full_length(evaluator):
    model, stored = make_model(head_dim=16), []
    for cell in evaluator.cells:
        mode = evaluator.mode(640, cell[2])
        with mode.installed(model), torch.no_grad():
            stored.append(cache_bytes(Prompt(model, torch.ones(1, 640).long(), [640], mode).cache))
    assert [evaluator.prompt_bytes(cell, model.config, model.dtype) for cell in evaluator.cells] == stored
    assert stored[0] > stored[1] > stored[2]


def prompt_bytes(evaluator, model) -> dict[str, int]:
    return {cell[2]: evaluator.prompt_bytes(cell, model.config, model.dtype) for cell in evaluator.cells}


def test_batches_shrink_to_the_memory_down_to_one_prompt(evaluator, model, monkeypatch, caplog):
    """Batches of two: two dense caches do not fit in four fifths of the memory, two of the others do."""
    sizes = prompt_bytes(evaluator, model)
    free = int(2 * sizes["r0.5"] / 0.8) + 1
    assert free * 0.8 < 2 * sizes["r1"]
    caplog.set_level("INFO", "lrsa_lightning")
    for _ in range(3):
        monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: free)
        fitting = evaluator.batch_sizes(model, Ranks())
        assert {cell[2]: size for cell, size in fitting.items()} == {"r1": 1, "r0.5": 2, "r0.25": 2}
    (line,) = [record.message for record in caplog.records]  # once for each choice
    assert line.startswith("RULER: caches do not fit in 80% of the 0.0 GiB free, so the batches get smaller.")
    assert "niah_single_1/640/r1 1 x 0.0 GiB" in line
    assert "r0.5" not in line
    assert evaluator.num_batches(Ranks(), fitting) == 5 + 3 + 3
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 1)
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {1}
    monkeypatch.undo()
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {2}  # no measurement on a CPU
    # Each of five ranks has one of the five samples.
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 10**9)
    assert {*evaluator.batch_sizes(model, Ranks(0, 5)).values()} == {1}


def test_smaller_batches_find_the_same(evaluator, model):
    full = all_records(evaluator, model)
    smaller = all_records(evaluator, model, batch_sizes={(TASK, 640, "r1"): 1})
    assert [(r.id, r.budget, r.prediction) for r in smaller] == [(r.id, r.budget, r.prediction) for r in full]
    assert [r.nll for r in smaller] == pytest.approx([r.nll for r in full], rel=1e-4)
    passes = [len(batch) for batch in evaluator.evaluate(model, generation=False, batch_sizes={(TASK, 640, "r1"): 1})]
    assert passes == [1, 1, 1, 1, 1, 2, 2, 1, 2, 2, 1]
