"""The LightningModule: a Hugging Face causal decoder with an attention mode, its loss and its optimizer.

Shape suffixes: B rows of a micro-batch, N = seq_len, D hidden size.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal, TypeVar

import lightning
import torch
from torch import Tensor

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.collectives import sum_over_ranks
from lrsa_lightning.data.resume_progress import SavedProgress, count_steps, ends_step
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.errors import InputError
from lrsa_lightning.fused import FusedLayers
from lrsa_lightning.lora.adapters import LoraSettings, check_keys, keep_trained, trained_parameters
from lrsa_lightning.loss import linear_cross_entropy
from lrsa_lightning.meter import StepMeter
from lrsa_lightning.optimizer.clipping import clip
from lrsa_lightning.optimizer.schedule import ScheduleSettings
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan.recompute_choice import policies
from lrsa_lightning.pretrained.starting_model import StartingModel
from lrsa_lightning.ranges import (
    AtLeastTwo,
    DecayRate,
    NonNegativeFiniteFloat,
    NonNegativeInt,
    PositiveFiniteFloat,
    PositiveInt,
    checked,
)
from lrsa_lightning.recompute.policies import Policy, recompute_of, set_policies
from lrsa_lightning.step_log import StepLog, write_steps
from lrsa_lightning.training_model import training_model

T = TypeVar("T")


class LongContextModule(lightning.LightningModule):
    """Fine-tunes a causal decoder on long contexts with a swappable attention.

    The defaults are those of the paper's run: AdamW, lr 1.25e-5, no warm-up, cosine to 0.
    """

    @checked
    def __init__(
        self,
        attention: AttentionMode,
        name_or_path: str | None = None,
        from_config: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        seq_len: AtLeastTwo = 32768,
        lr: PositiveFiniteFloat = 1.25e-5,
        betas: tuple[DecayRate, DecayRate] = (0.9, 0.95),
        weight_decay: NonNegativeFiniteFloat = 0.1,
        warmup_steps: NonNegativeInt = 0,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008  frozen
        scheduler: ScheduleSettings = ScheduleSettings(),  # noqa: B008
        recompute: Policy | Literal["auto"] = "auto",
        fused_layers: FusedLayers = "auto",
        loss_chunk_size: PositiveInt = 1024,
        gradient_checkpointing: bool | None = None,
        lora: LoraSettings | None = None,
        quantization: str | dict[str, Any] | None = None,
        gguf_file: str | None = None,
    ):
        """
        Args:
            attention: the attention mode: Vanilla, LRSA, or your own subclass of AttentionMode.
            name_or_path: hub id or folder of a pretrained model, or of a LoRA adapter, which is trained on.
            from_config: a model with random weights instead: keys of Qwen2Config, or of another architecture's
                configuration, which model_type names.
            rope_parameters: override those of the model, for example {rope_type: yarn, factor: 4.0}.
            seq_len: tokens of a row, linked from data.seq_len.
            lr: peak learning rate.
            betas: of optimizers that have two.
            weight_decay: weight decay of matrices; vectors (norms, biases) have none.
            warmup_steps: steps of linear warm-up.
            optimizer: AdamW, or another optimizer by its name.
            scheduler: the learning rate after the warm-up.
            recompute: what the backward computes again, which saves memory and costs time: none, selective (norms and
                SwiGLU's product), attention (the MLPs too, not the attention), full (each layer), or offload (full,
                with the layers' inputs in the host's memory). auto takes the fastest that fits, layer by layer.
            fused_layers: RMSNorm, SwiGLU and rotary embeddings by fused operators; auto takes them where they exist.
            loss_chunk_size: label tokens whose logits exist at a time.
            gradient_checkpointing: the earlier name of recompute: true is full, false is none.
            lora: low-rank adapters, trained in place of the weights; or a file, as configs/lora/*.yaml.
            quantization: of the weights beside adapters: nf4, fp4, int8, or keys of transformers' BitsAndBytesConfig.
            gguf_file: file in name_or_path whose weights are dequantised, once, into .lrsa_cache; needs package gguf.

        Raises:
            InputError: not exactly one of name_or_path and from_config is given, a number is outside its range, or keys
                of from_config are wrong; or the learning rate cannot fall so.
        """
        super().__init__()
        self.attention = self.step_attention = attention  # the mode, and that of the current step alone
        self.starting_model = StartingModel(name_or_path, from_config, rope_parameters, lora, quantization, gguf_file)
        self.seq_len = seq_len
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.recompute = recompute_of(recompute, gradient_checkpointing)
        self.fused_layers = fused_layers
        self.loss_chunk_size = loss_chunk_size
        self.model = None
        self.meter = StepMeter()
        self.step_log = StepLog()
        self._loaded_steps = 0
        scheduler.check(lr)
        if from_config is not None:
            self.starting_model.load_config()  # costs nothing, and finds a wrong key before any data is read

    def prepare_data(self) -> None:
        """Raises InputError unless model, attention, length and vocabulary fit together; reads no data or weight."""
        from lrsa_lightning.model_check import check_optimizer, check_together

        config = self.starting_model.load_config()
        self.starting_model.check(config)
        check_together(config, self._attention_at_length, self.seq_len, self.trainer)
        check_optimizer(self.optimizer, self.betas, self.trainer)
        if (quantisation := self.starting_model.quantisation) is not None:
            quantisation.check(self.trainer.strategy, str(self.trainer.precision))

    def setup(self, stage: str) -> None:
        """Checks the attention against the model's layers in each process, before a strategy shards the weights."""
        self._attention_at_length.check(self.starting_model.load_config())

    def configure_model(self) -> None:
        """Loads or makes the model and installs the attention mode; does nothing the second time."""
        if self.model is not None:
            return
        strategy = getattr(self._trainer, "strategy", None)  # a module may be built without a trainer
        self.model = training_model(self.starting_model, self._attention_at_length, self.fused_layers, strategy)
        if self.starting_model.has_adapters:
            self.register_state_dict_post_hook(keep_trained)
            self.strict_loading = False  # the frozen weights are not in the checkpoint
        if isinstance(strategy, SequenceParallelStrategy):
            strategy.parallelize(self.attention, self.model, self.seq_len)

    def on_train_start(self) -> None:
        """Decides what is computed again, now that the weights have their place on the device."""
        set_policies(self.model.get_decoder().layers, policies(self, self.trainer))

    @property
    def _attention_at_length(self) -> AttentionMode:
        return self.attention.for_length(self.seq_len)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Last hidden states of right-padded rows, under the installed attention mode.

        Args:
            input_ids: int64 [B, N], or this rank's segment of the rows.
            position_ids: of the same shape.
            cu_seqlens: boundaries of the samples in each packed row, from 0 to N; None for one sample a row. A mode
                need not look for them in the positions.

        Returns:
            [B, N, D], or this rank's segment.
        """
        rows = self.attention.row_arguments(cu_seqlens, input_ids.device)
        decoder = self.model.get_decoder()
        return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **rows).last_hidden_state

    def as_forward(self, function: Callable[[], T]) -> T:
        """Calls a function that runs parts of the model: strategies that shard weights gather them for it."""
        return function()

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Draws of ratios and of dropout depend on their place in the run alone: a resumed run repeats them."""
        total_steps, seed = self.trainer.estimated_stepping_batches, getattr(self.trainer.datamodule, "seed", 0)
        self.step_attention = self.attention.begin_step(self.trainer.global_step, total_steps, seed)
        if self.starting_model.dropout:
            place = self.trainer.global_step, batch_idx % self.trainer.accumulate_grad_batches, self.global_rank
            torch.manual_seed(Random(f"{self.trainer.datamodule.seed} {place}").getrandbits(63))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """
        Raises:
            InputError: no sample of the optimizer step has label tokens.
        """
        hidden_BND = self._hidden(batch)
        # This micro-batch's part of the global batch's loss, a mean over label tokens or over samples.
        loss = self._loss_sum(hidden_BND, batch, batch["weights"]) / batch["num_tokens"]
        self.meter.add(batch, loss, self._label_loss_sum(hidden_BND, batch))
        if ends_step(self.trainer):
            self._end_step()
        # Lightning divides by the accumulation steps and the strategy averages over the ranks: undo both.
        return loss * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_after_backward(self) -> None:
        self.attention.end_step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        # Without validation files the batch is empty, so that callbacks run. A batch may have no label tokens.
        if not batch or batch["max_labels_per_rank"] == 0:
            return
        loss = self._loss_sum(self._hidden(batch), batch, batch["weights"]) / batch["num_tokens"]
        options = {"sync_dist": True, "batch_size": int(batch["num_tokens"])}
        self.log("val/loss", loss * self.trainer.world_size, prog_bar=True, **options)
        # Loggers take it as the step; Lightning itself would give them one step less.
        self.log("step", float(self.trained_steps), reduce_fx="max", **options)

    def _hidden(self, batch: dict[str, Any]) -> Tensor:
        return self(batch["input_ids"], batch["position_ids"], batch.get("cu_seqlens"))

    @torch.no_grad()
    def _label_loss_sum(self, hidden_BND: Tensor, batch: dict[str, Any]) -> Tensor | None:
        """Sum over label tokens, which the loss hides where samples weigh the same; costs a forward of the head."""
        by_token = getattr(self.trainer.datamodule, "loss_weighting", "token") == "token"
        return None if by_token else self._loss_sum(hidden_BND, batch, None)

    def _loss_sum(self, hidden_BND: Tensor, batch: dict[str, Any], weights_BN: Tensor | None) -> Tensor:
        head = self.model.get_output_embeddings()
        labels_BN, max_labels_per_rank = batch["labels"], batch["max_labels_per_rank"]
        return linear_cross_entropy(
            *(hidden_BND, head, labels_BN, self.loss_chunk_size, weights_BN, max_labels_per_rank),
            positions_T=batch.get("label_positions"),
        )

    def _end_step(self) -> None:
        """Logs the sums over the global batch, and the learning rate of its optimizer step."""
        if not self.meter.has_labels:  # its loss would be 0, or 0 / 0
            raise InputError(
                f"no sample of step {self.trainer.global_step + 1} has label tokens, so there is nothing to train on: "
                "look at the data with `lrsa inspect`"
            )
        step = self.meter.end_step(sum_over_ranks)
        self.log("train/loss", step.loss, logger=False)  # for callbacks that monitor it
        self.step_log.begin(self.trainer)
        self.step_log.add(step.metrics() | self.step_attention.step_metrics())
        self.step_log.add({"train/lr": self.optimizers().param_groups[0]["lr"]})

    @property
    def trained_steps(self) -> int:
        """Optimizer steps that made the weights; `lrsa validate` takes none, but loads some."""
        return max(self.trainer.global_step, self._loaded_steps)

    @property
    def seen_tokens(self) -> tuple[int, int]:
        """Tokens of all trained steps on all ranks, without padding, and the label tokens among them."""
        return self.meter.seen_tokens

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        write_steps(self.trainer)
        checkpoint["seen_tokens"] = list(self.seen_tokens)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Lightning calls it before it takes its progress from the checkpoint."""
        if not self.strict_loading and "state_dict" in checkpoint:  # FSDP2 and ZeRO have loaded it
            check_keys(checkpoint["state_dict"], trained_parameters(self), "the checkpoint")
        self._loaded_steps = checkpoint["global_step"]
        self.meter.load(checkpoint.get("seen_tokens", (0, 0)))
        if (samples_at_a_time := getattr(self.trainer.datamodule, "samples_at_a_time", None)) is not None:
            SavedProgress(checkpoint).align(samples_at_a_time)

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args, **kwargs) -> None:
        """Logs the gradient norm under DeepSpeed, which gives it only after the step."""
        super().optimizer_step(*args, **kwargs)
        norm = getattr(self.trainer.model, "get_global_grad_norm", lambda: None)()
        if self.meter.is_between_steps and norm is not None:
            self.step_log.add({"train/grad_norm": norm})

    def on_train_batch_end(self, *_) -> None:
        if self.meter.is_between_steps and self.step_log.is_due(self.trainer):
            write_steps(self.trainer)

    def on_train_epoch_end(self) -> None:
        write_steps(self.trainer)

    def on_validation_start(self) -> None:
        write_steps(self.trainer)

    def configure_optimizers(self):
        """The optimizer, with weight decay on matrices alone, and the learning rate of each step."""
        # Lightning's gradient scaler leaves the gradients of a fused optimizer scaled when they are clipped.
        fused = self.device.type in ("cuda", "npu") and "mixed" not in str(self.trainer.precision)
        optimizer = self.optimizer.make(self.parameters(), self.lr, self.betas, self.weight_decay, fused)
        factor = self.scheduler.factor(self.lr, self.warmup_steps, count_steps(self.trainer))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
