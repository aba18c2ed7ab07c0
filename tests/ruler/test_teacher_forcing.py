"""The likelihood of the references, against decoding and against a plain forward pass."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.teacher_forcing import rate_after, teacher_force
from tests.ruler.conftest import TASK


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


MODES = [
    Vanilla(),
    LRSA(lag_size=16, sink_size=4),
    LRSA(lag_size=16, retention_ratio=0.25, skip_layers=[1]),
    LRSA(lag_size=16, sink_size=4, scorer="window"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [(100, 100, 100), (100, 61, 83), (21, 100, 3)], ids=str)
@pytest.mark.parametrize("by_steps", [False, True])
@torch.no_grad()
def test_rating_after_a_prefill_is_rating_under_the_training_mask(
    model, tokenizer, mode, lengths, by_steps, monkeypatch
):
    """Answers that complete chunks, and prompts within and beyond the first ones."""
    monkeypatch.setattr(Prompt, "_prefers_steps", lambda *_: by_steps)  # a GPU may
    model.double()
    ids = torch.randint(len(tokenizer), (3, 150), generator=torch.Generator().manual_seed(0))
    prompts = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    answers = [row[100 : 100 + length].tolist() for row, length in zip(ids, (1, 40, 17), strict=True)]
    expected = teacher_force(model, mode, prompts, answers, width=150)
    mode = mode.for_length(150)
    prompt = Prompt(model, ids, lengths, mode, 3)
    rated = rate_after(model, prompt, answers)
    written = prompt.decode(20)
    assert torch.equal(written, Prompt(model, ids, lengths, mode, 3).decode(20))  # not touched by the rating
    assert [answer.nll for answer in rated] == pytest.approx([answer.nll for answer in expected], rel=1e-6)
    assert [answer.exact_match for answer in rated] == [answer.exact_match for answer in expected]
    assert all(own.exact_match for own in rate_after(model, Prompt(model, ids, lengths, mode), written.tolist()))


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
