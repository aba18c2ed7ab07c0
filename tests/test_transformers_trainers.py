"""transformers' Trainer and TRL's SFTTrainer under LRSA: each step's loss and gradients equal those of our module.

The reference runs each sample alone, without padding or packing, through `LongContextModule` and its loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from lrsa_lightning import LRSA
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import linear_cross_entropy
from lrsa_lightning.module import LongContextModule
from tests.conftest import TINY_MODEL, make_model

MODE = LRSA(lag_size=8, sink_size=4)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
# What assistant_only_loss needs: the template marks the answers.
MARKED_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMON = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.0,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


@dataclass
class Step:
    """What a trainer did in a step: its batch, its loss, and the weights and gradients before the optimizer's step."""

    batch: dict[str, Tensor]
    loss: float
    weights: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


class Recording:
    """A mixin of trainers that keeps their steps."""

    def compute_loss(self, model, inputs, *arguments, **options):
        batch = {name: z.clone() for name, z in inputs.items() if isinstance(z, Tensor)}
        loss = super().compute_loss(model, inputs, *arguments, **options)
        self.__dict__.setdefault("steps", []).append(Step(batch, loss.item()))
        return loss


class RecordingTrainer(Recording, Trainer):
    pass


class RecordingSFTTrainer(Recording, SFTTrainer):
    pass


class Gradients(TrainerCallback):
    """Keeps weights and gradients before each step of the optimizer."""

    trainer: Recording

    def on_pre_optimizer_step(self, *_, model, **__):
        step = self.trainer.steps[-1]
        step.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        step.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def trained(trainer: Recording) -> list[Step]:
    callback = Gradients()
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()
    assert len(trainer.steps) == 3
    return trainer.steps


def samples(batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels of each sample, [1, N], in a padded or packed batch."""
    if "attention_mask" in batch:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            yield ids[mask == 1][None], labels[mask == 1][None]
    else:
        (starts,) = (batch["position_ids"][0] == 0).nonzero(as_tuple=True)
        sizes = torch.cat([starts, torch.tensor([batch["position_ids"].shape[1]])]).diff().tolist()
        assert len(sizes) > 1
        yield from zip(batch["input_ids"].split(sizes, dim=1), batch["labels"].split(sizes, dim=1), strict=True)


def ours(model, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss over the label tokens of a batch, by our module."""
    module = LongContextModule(MODE, from_config={**TINY_MODEL, "vocab_size": model.config.vocab_size})
    module.model = model
    total, count = 0.0, 0
    for ids, labels in samples(batch):
        hidden = module(ids, torch.arange(ids.shape[1])[None])
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        total = total + linear_cross_entropy(hidden, model.get_output_embeddings(), shifted)
        count += int((shifted != -100).sum())
    return total / count


def assert_steps_are_ours(steps: list[Step], model) -> None:
    for step in steps:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(step.weights[name])
        model.zero_grad()
        loss = ours(model, step.batch)
        loss.backward()
        assert step.loss == pytest.approx(loss.item(), abs=2e-5)
        for name, gradient in step.gradients.items():
            torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=2e-5)
    assert all(any(z.any() for z in step.gradients.values()) for step in steps)


@pytest.fixture
def installed(tokenizer):
    """A model of the same weights in which the mode is installed by hand."""
    model = make_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    MODE.install(model)
    return model


def token_rows() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    lengths = (70, 31, 45, 9, 60, 66)
    return [{"input_ids": torch.randint(1, 90, (length,), generator=generator).tolist()} for length in lengths]


def padded_on_the_right(tokenizer):
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def padded_on_the_left(tokenizer):
    """transformers' own loss would also predict the first token of a row, from the padding before it."""

    def collate(rows):
        batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt")
        begins = batch["attention_mask"].cumsum(dim=1) <= 1
        return {**batch, "labels": batch["input_ids"].masked_fill(begins, -100)}

    return collate


COLLATORS = {
    "right": padded_on_the_right,
    "left": padded_on_the_left,
    "packed": lambda _: DataCollatorWithFlattening(),
    "packed, bounds": lambda _: DataCollatorWithFlattening(return_flash_attn_kwargs=True),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("collator", COLLATORS)
def test_trainer(installed, folder, tokenizer, tmp_path, collator, checkpointing):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="lrsa")
    options = TrainingArguments(str(tmp_path / "out"), gradient_checkpointing=checkpointing, **COMMON)
    trainer = RecordingTrainer(model, options, COLLATORS[collator](tokenizer), Dataset.from_list(token_rows()))
    assert_steps_are_ours(trained(trainer), installed)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config._attn_implementation == "lrsa"
    assert again.config.lrsa == MODE.settings()


def conversations() -> Dataset:
    def turns(i: int) -> list[dict]:
        question = {"role": "user", "content": "The grass is green. " * (i % 3 + 1)}
        return [question, {"role": "assistant", "content": f"One of the special magic numbers is {i}{i}."}]

    return Dataset.from_list([{"messages": turns(i)} for i in range(12)])


@pytest.mark.parametrize(
    ("options", "lora"),
    [
        ({}, False),
        ({"packing": True, "packing_strategy": "bfd"}, False),
        ({"assistant_only_loss": True}, False),
        ({"packing": True, "packing_strategy": "bfd", "assistant_only_loss": True}, True),
        ({"gradient_checkpointing": False}, True),
    ],
    ids=str,
)
def test_sft_trainer(installed, folder, tokenizer, tmp_path, options, lora, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", MARKED_TEMPLATE)
    loading = {"attn_implementation": "lrsa", "dtype": "float32"}
    config = SFTConfig(str(tmp_path / "out"), max_length=160, model_init_kwargs=loading, **COMMON, **options)
    trainer = RecordingSFTTrainer(
        folder,
        config,
        train_dataset=conversations(),
        processing_class=tokenizer,
        peft_config=LORA if lora else None,
    )
    steps = trained(trainer)
    if lora:
        installed = get_peft_model(installed, LORA)
        assert len(steps[0].gradients) == 2 * 3 * 2
    assert_steps_are_ours(steps, installed)
    if "packing" in options:
        assert "attention_mask" not in steps[0].batch
    if "assistant_only_loss" in options:
        assert all((step.batch["labels"] == -100).float().mean() > 0.2 for step in steps)


def test_wrapped_packing_makes_one_text_of_a_row(installed, folder, tokenizer, tmp_path, monkeypatch):
    """TRL gives no boundaries then: a sample sees those before it, under every attention."""
    monkeypatch.setattr(tokenizer, "chat_template", MARKED_TEMPLATE)
    loading = {"attn_implementation": "lrsa", "dtype": "float32"}
    packing = {"packing": True, "packing_strategy": "wrapped"}
    config = SFTConfig(str(tmp_path / "out"), max_length=96, model_init_kwargs=loading, **COMMON, **packing)
    trainer = RecordingSFTTrainer(folder, config, train_dataset=conversations(), processing_class=tokenizer)
    steps = trained(trainer)
    begins = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert max(int((ids == begins).sum()) for step in steps for ids in step.batch["input_ids"]) > 2  # of two turns each
    assert_steps_are_ours(steps, installed)


POSITIONS = torch.cat([torch.arange(30), torch.arange(40)])[None]


@pytest.mark.parametrize("training", [True, False])
def test_packed_rows_keep_their_boundaries_with_use_cache_left_on(installed, training):
    ids = torch.randint(0, 97, (1, 70), generator=torch.Generator().manual_seed(0))
    installed.train(training)
    got = installed(ids, position_ids=POSITIONS).logits
    apart = torch.cat([installed(part, use_cache=False).logits for part in ids.split([30, 40], dim=1)], dim=1)
    torch.testing.assert_close(got, apart, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="position_ids do not rise by one"):
        installed(ids, position_ids=POSITIONS, attention_mask=torch.ones_like(ids))


def test_bounds_of_several_rows(installed):
    ids = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([POSITIONS, torch.arange(70)[None]])
    bounds = torch.tensor([0, 30, 70, 140], dtype=torch.int32)
    options = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 70, "max_length_k": 70}
    got = installed(ids, position_ids=positions, use_cache=False, **options).logits
    expected = installed(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
