"""The same training by transformers' own Trainer."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bench.clock import Measured, StepClock
from bench.inputs import Inputs
from bench.settings import Settings


def run_peer(settings: Settings, liger: bool, clock: StepClock) -> dict[str, Any]:
    """Trains on the same rows with bfloat16 weights and gradient checkpointing, with or without Liger's kernels."""
    import transformers

    class Ticking(transformers.TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            clock.tick()

    arguments = transformers.TrainingArguments(
        output_dir=str(settings.inputs.folder / "peer"),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.global_batch // settings.micro_batch,
        max_steps=4000,
        learning_rate=1.25e-5,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=liger,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.inputs.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=peer_rows(settings.inputs),
        data_collator=transformers.default_data_collator,
        callbacks=[Ticking()],
    )
    with suppress(Measured):
        trainer.train()
    return {}


def peer_rows(inputs: Inputs) -> list[dict[str, Tensor]]:
    """The rows as transformers' models take them: they shift the labels themselves."""
    rows = []
    for ids in torch.from_numpy(inputs.ids[:, :-1]):
        labels = ids.clone()
        labels[: -inputs.labels] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows
