"""The module in real runs of the command, against plain references."""

import json
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning import Callback
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lrsa_lightning import Vanilla
from lrsa_lightning.attention.base import set_attention
from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.module import LongContextModule
from tests.conftest import TINY_MODEL
from tests.runs import checkpoints, command, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")


class Keeper(Callback):
    """Keeps what a run of this process goes through.

    Attributes:
        batches: micro-batches, in order.
        weights: before the first step and after each, float64.
        gradients: of each step, before clipping, float64.
        groups: the optimizer's, as they are made.
        sums: what the meter carries from a micro-batch to the next.
        logits: rows of each call of the head.
        forwards: of the first layer, in each micro-batch with its backward.
    """

    def __init__(self):
        Keeper.seen = self
        self.batches, self.weights, self.gradients, self.sums, self.forwards = [], [], [], [], []
        self.logits = []

    def on_train_start(self, trainer, pl_module) -> None:
        optimizer = trainer.optimizers[0]
        self.kind = type(optimizer)
        self.groups = [{**group, "params": [*group["params"]]} for group in optimizer.param_groups]
        self.model = pl_module.model
        self.weights.append(double(pl_module))
        self.model.lm_head.register_forward_hook(lambda head, inputs, output: self.logits.append(len(output)))
        self.model.get_decoder().layers[0].input_layernorm.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.forwards[-1] += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.forwards.append(0)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients.append({name: p.grad.double() for name, p in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches.append(batch)
        self.sums += pl_module.meter._sums or []
        if pl_module.meter.is_between_steps:
            self.weights.append(double(pl_module))


def double(module) -> dict[str, torch.Tensor]:
    return {name: p.detach().double() for name, p in module.named_parameters()}


@pytest.fixture
def run(arguments):
    """Runs with these options, and what was kept of it."""

    def make(**options: str) -> Keeper:
        changed = {key.replace("__", "."): value for key, value in options.items()}
        keeper = json.dumps([{"class_path": "tests.test_module.Keeper"}])
        base = {k: v for k, v in arguments.items() if not k.startswith("model.attention.")}
        main(command({**base, "model.attention": "Vanilla", "trainer.callbacks": keeper, **changed}))
        return Keeper.seen

    return make


def reference_loss(model, batches: list[dict], by_sample: bool) -> torch.Tensor:
    """The mean over label tokens, or over samples of their means, from transformers' full logits."""
    losses = []
    for batch in batches:
        for ids, labels, length in zip(batch["input_ids"], batch["labels"], batch["lengths"], strict=True):
            logits = model(input_ids=ids[:length].unsqueeze(0)).logits[0]
            losses.append(cross_entropy(logits, labels[:length], ignore_index=-100, reduction="none"))
    of_answers = [loss[loss != 0] for loss in losses]
    return torch.stack([z.mean() for z in of_answers]).mean() if by_sample else torch.cat(of_answers).mean()


@pytest.mark.parametrize(("micro", "weighting"), [(4, "token"), (2, "token"), (1, "token"), (1, "sample")])
def test_loss_and_gradient_are_those_of_the_global_batch(run, arguments, micro, weighting):
    """Unlike AdamW, the gradients show a factor, be it of the accumulation."""
    keeper = run(trainer__max_steps="1", data__micro_batch_size=str(micro), data__loss_weighting=weighting)
    assert len(keeper.batches) == 4 // micro
    model = AutoModelForCausalLM.from_config(keeper.model.config, attn_implementation="eager")
    model.load_state_dict({name.removeprefix("model."): z for name, z in keeper.weights[0].items()})
    loss = reference_loss(model, keeper.batches, weighting == "sample")
    loss.backward()
    (row,) = metrics()
    assert row["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    answer_loss = reference_loss(model, keeper.batches, by_sample=False)
    assert row["train/answer_loss"] == pytest.approx(answer_loss.item(), rel=1e-6)
    expected = {f"model.{name}": p.grad.double() for name, p in model.named_parameters()}
    for name, gradient in keeper.gradients[0].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    norm = math.sqrt(sum(float(z.square().sum()) for z in expected.values()))
    assert row["train/grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_steps_are_those_of_adamw(run):
    """Loshchilov and Hutter's (arXiv 1711.05101), written out, on clipped gradients; vectors do not decay."""
    lr, (first, second), decay, clip = 0.01, (0.7, 0.8), 0.3, 0.5
    options = {"model__betas": "[0.7, 0.8]", "model__weight_decay": "0.3", "model__warmup_steps": "2"}
    keeper = run(**options, trainer__gradient_clip_val="0.5", trainer__max_steps="4")
    rates, norms = ([row[name] for row in metrics()] for name in ("train/lr", "train/grad_norm"))
    assert rates == pytest.approx([lr / 2, lr, lr, lr / 2])
    assert min(norms) > clip
    for name, weight in keeper.weights[0].items():
        mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
        for step, rate in enumerate(rates, start=1):
            gradient = keeper.gradients[step - 1][name] * clip / norms[step - 1]
            mean = first * mean + (1 - first) * gradient
            square = second * square + (1 - second) * gradient**2
            unbiased = (mean / (1 - first**step)) / ((square / (1 - second**step)).sqrt() + 1e-8)
            weight = weight * (1 - rate * (decay if weight.ndim > 1 else 0)) - rate * unbiased
            torch.testing.assert_close(keeper.weights[step][name], weight, rtol=1e-4, atol=2e-6, msg=name)


def test_each_weight_is_in_one_group_and_vectors_do_not_decay(run):
    keeper = run(trainer__max_steps="1")
    matrices, vectors = keeper.groups
    assert keeper.kind is torch.optim.AdamW
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert [group["betas"] for group in keeper.groups] == [(0.9, 0.95)] * 2
    in_groups = sorted(id(p) for group in keeper.groups for p in group["params"])
    assert in_groups == sorted(id(p) for p in keeper.model.parameters())


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_learning_rate_of_each_step(run, warmup):
    """Over the end of an epoch of six steps, of two micro-batches each."""
    run(model__warmup_steps=str(warmup), trainer__max_steps="8")
    rising = [0.01 * (i + 1) / warmup for i in range(warmup)]
    left = 8 - warmup
    falling = [0.01 * (1 + math.cos(math.pi * i / left)) / 2 for i in range(left)]
    assert [row["train/lr"] for row in metrics()] == pytest.approx(rising + falling, rel=1e-6)


def test_a_warmup_as_long_as_the_run_is_a_warning(run, caplog):
    run(model__warmup_steps="2", trainer__max_steps="2")
    assert "model.warmup_steps 2: the run ends after 2, before model.lr falls" in caplog.text


def test_a_run_without_an_end_keeps_the_peak_and_says_so(run, caplog):
    run(trainer__max_steps="-1", trainer__max_epochs="-1", trainer__max_time="00:00:00:01")
    assert {round(row["train/lr"], 6) for row in metrics()} == {0.01}
    assert "the run has no number of steps: model.lr stays at its peak" in caplog.text


@pytest.mark.parametrize(("recompute", "forwards"), [("full", 2), ("none", 1), ("auto", 1)])
def test_layers_are_computed_again_in_the_backward(run, recompute, forwards):
    keeper = run(model__recompute=recompute, trainer__max_steps="1")
    assert keeper.forwards == [forwards] * 2


class Observed(Vanilla):
    """Full attention that notes the boundaries of packed rows that each layer gets."""

    seen: ClassVar[list] = []

    def install(self, model) -> None:
        AttentionInterface.register(self.registry_key(), self._attention)
        AttentionMaskInterface.register(self.registry_key(), AttentionMaskInterface()["sdpa"])
        set_attention(model, self.registry_key())

    def _attention(self, *args, cu_seqlens=None, **kwargs):
        self.seen.append(cu_seqlens)
        return sdpa_attention_forward(*args, **kwargs)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "sp_fsdp2", "sp_deepspeed"])
@pytest.mark.parametrize(("recompute", "forwards"), [("full", 2), ("none", 1)])
def test_each_layer_gets_the_boundaries_of_packed_rows(arguments, strategy, recompute, forwards):
    Observed.seen.clear()
    base = {key: value for key, value in arguments.items() if not key.startswith("model.attention.")}
    base |= {"data.packing": "true", "data.extend": "false", "data.seq_len": "300", "data.micro_batch_size": "4"}
    base |= {"model.attention": f"{__name__}.Observed", "model.recompute": recompute}
    main(command({**base, "trainer.strategy": strategy, "trainer.max_steps": "1"}))
    first, *others = Observed.seen
    assert others == [first] * (TINY_MODEL["num_hidden_layers"] * forwards - 1)
    assert [(row[0], row[-1]) for row in first] == [(0, 300)] * 4
    assert max(len(row) for row in first) > 2


def test_nothing_between_micro_batches_holds_a_graph(run):
    keeper = run(trainer__max_steps="2", data__micro_batch_size="1", data__loss_weighting="sample")
    assert len(keeper.sums) == 2 * 3 * 3
    assert all(each.grad_fn is None and not each.requires_grad for each in keeper.sums)


def test_a_step_without_label_tokens_is_refused(run, monkeypatch):
    """Its loss would be 0 / 0."""
    training_step = LongContextModule.training_step

    def without_answers(self, batch, batch_idx):
        if batch_idx in (2, 3):  # the second step; of the first, one micro-batch has answers
            batch = {**batch, "labels": torch.full_like(batch["labels"], -100), "max_labels_per_rank": 0}
            batch["num_tokens"] = torch.zeros_like(batch["num_tokens"])
        return training_step(self, {**batch, "max_labels_per_rank": 0} if batch_idx == 1 else batch, batch_idx)

    monkeypatch.setattr(LongContextModule, "training_step", without_answers)
    with pytest.raises(SystemExit):
        run()
    assert [row["step"] for row in metrics()] == [1]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("warmup_steps", 1.5),
        ("loss_chunk_size", 0),
        ("seq_len", 1),
    ],
)
def test_numbers_outside_their_range_are_refused(argument, value):
    with pytest.raises(InputError, match=f"LongContextModule.{argument} is .*, but must be"):
        LongContextModule(Vanilla(), from_config=TINY_MODEL, **{argument: value})


def test_tokens_are_counted_over_a_resume(arguments):
    """Also beyond what float32 can count."""
    main(command({**arguments, "trainer.max_steps": "4", "trainer.callbacks": checkpoints(2)}))
    names = ("train/tokens", "train/answer_tokens")
    _, second, *later = ([int(row[name]) for name in names] for row in metrics("x"))
    file = Path("runs/x/checkpoints/step=2.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["seen_tokens"] == second
    torch.save({**checkpoint, "seen_tokens": [2**30 + 1 + second[0], 2**31 + second[1]]}, file)
    main(command({**arguments, "trainer.max_steps": "4", "run_name": "y", "ckpt_path": str(file)}))
    found = [[row[name] for name in names] for row in metrics("y")]
    assert found == [[2**30 + 1 + tokens, 2**31 + answers] for tokens, answers in later]
    assert later[-1][1] < later[-1][0]


def test_no_more_logits_exist_at_a_time_than_the_chunk_size(run):
    keeper = run(trainer__max_steps="1", model__loss_chunk_size="3", data__micro_batch_size="4")
    assert max(keeper.logits) == 3
