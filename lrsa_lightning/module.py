"""The LightningModule: a Hugging Face causal decoder, an attention mode, the loss, the optimizer.

Shape suffixes: B rows of a micro-batch, N = seq_len, D hidden size.
"""

from collections.abc import Callable
from itertools import compress
from operator import not_
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.plugins import DeepSpeedPrecision, Precision
from torch import Tensor

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import IGNORE_INDEX, linear_cross_entropy
from lrsa_lightning.ranges import (
    AtLeastTwo,
    DecayRate,
    NonNegativeFiniteFloat,
    NonNegativeInt,
    PositiveFiniteFloat,
    PositiveInt,
    checked,
)
from lrsa_lightning.schedule import warmup_cosine

T = TypeVar("T")


class LongContextModule(lightning.LightningModule):
    """Fine-tunes a causal decoder on long contexts with a swappable attention.

    The defaults are the paper's run: AdamW, lr 1.25e-5, no warm-up, cosine to 0.
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
        gradient_checkpointing: bool = False,
        loss_chunk_size: PositiveInt = 1024,
    ):
        """
        Args:
            attention: the attention mode: Vanilla, LRSA, or your own subclass of AttentionMode.
            name_or_path: hub id or folder of a pretrained model.
            from_config: instead of it, a model with random weights: keys of Qwen2Config (or of another
                architecture's, named by model_type).
            rope_parameters: overrides of the model's, such as {rope_type: yarn, factor: 4.0}.
            seq_len: tokens of a row, linked from data.seq_len.
            lr: peak learning rate.
            betas: of AdamW.
            weight_decay: of matrices; vectors (norms, biases) have none.
            warmup_steps: steps of linear warm-up before the cosine.
            gradient_checkpointing: recompute each layer in the backward.
            loss_chunk_size: label tokens whose logits exist at a time.

        Raises:
            InputError: not exactly one of name_or_path and from_config is given, a number lies outside its range, or
                keys of from_config are wrong.
        """
        super().__init__()
        if (name_or_path is None) == (from_config is None):
            raise InputError("give exactly one of model.name_or_path (pretrained) and model.from_config (random)")
        if from_config is not None:
            # Costs nothing, and a wrong key is found before any data is read.
            from lrsa_lightning.pretrained import load_config

            load_config(None, from_config, rope_parameters)
        self.attention = attention
        self.name_or_path = name_or_path
        self.from_config = from_config
        self.rope_parameters = rope_parameters
        self.seq_len = seq_len
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.gradient_checkpointing = gradient_checkpointing
        self.loss_chunk_size = loss_chunk_size
        self.model = None
        self._window: list[Tensor] | None = None
        self._targets = 0  # of the optimizer step, on the richest rank: an int, read without waiting for the device
        self._seen: Tensor | None = None
        self._seen_before: Tensor | None = None
        self._loaded_seen = [0, 0]
        self._loaded_steps = 0

    def prepare_data(self) -> None:
        """Checks model, attention, length and vocabulary against each other before any data or weight is read.

        Raises:
            InputError: they do not fit together.
        """
        from lrsa_lightning.model_check import check_together
        from lrsa_lightning.pretrained import load_config
        from lrsa_lightning.pretrained_weights import check_folder, check_quantisation

        if self.name_or_path is not None:
            check_folder(self.name_or_path)
        config = load_config(self.name_or_path, self.from_config, self.rope_parameters)
        check_quantisation(config, self.name_or_path)
        check_together(config, self._attention_at_length, self.seq_len, self.trainer)

    def setup(self, stage: str) -> None:
        """Lets each process find out what the model's layers ask of the attention, before a strategy shares weights."""
        from lrsa_lightning.pretrained import load_config

        self._attention_at_length.check(load_config(self.name_or_path, self.from_config, self.rope_parameters))

    @property
    def _attention_at_length(self) -> AttentionMode:
        return self.attention.for_length(self.seq_len)

    def configure_model(self) -> None:
        """Loads or makes the model and installs the attention mode; does nothing the second time."""
        if self.model is not None:
            return
        from lrsa_lightning.pretrained import load_config, load_model

        config = load_config(self.name_or_path, self.from_config, self.rope_parameters)
        self.model = load_model(config, self.name_or_path)
        self._attention_at_length.install(self.model)
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        strategy = getattr(self._trainer, "strategy", None)  # a module may be built without a trainer
        if isinstance(strategy, SequenceParallelStrategy):
            strategy.parallelize(self.attention, self.model, self.seq_len)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, N, D] of right-padded rows, or of this rank's part, under the installed mode."""
        decoder = self.model.get_decoder()
        return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state

    def as_forward(self, function: Callable[[], T]) -> T:
        """Calls a function that runs parts of the model, where a strategy may gather the weights it has shared."""
        return function()

    def answer_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """This micro-batch's share of the global batch's mean loss per label tokens, or per sample."""
        return self._share(self(batch["input_ids"], batch["position_ids"]), batch)

    def _share(self, hidden_BND: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return self._total_loss(hidden_BND, batch, batch["weights"]) / batch["num_tokens"]

    def _total_loss(self, hidden_BND: Tensor, batch: dict[str, Tensor], weights_BN: Tensor | None) -> Tensor:
        head = self.model.get_output_embeddings()
        labels_BN, max_labels_per_rank = batch["labels"], batch["max_labels_per_rank"]
        return linear_cross_entropy(hidden_BND, head, labels_BN, self.loss_chunk_size, weights_BN, max_labels_per_rank)

    @property
    def trained_steps(self) -> int:
        """Optimizer steps behind the weights; `lrsa validate` makes none, but loads some."""
        return max(self.trainer.global_step, self._loaded_steps)

    @property
    def seen_tokens(self) -> tuple[int, int]:
        """Tokens of all rows trained on so far by all ranks, without padding, and those of them that were learned."""
        total, learned = self._loaded_seen if self._seen is None else self._seen.tolist()
        return total, learned

    def forget_window(self) -> None:
        """Takes back the counts of an optimizer step that is not taken."""
        self._seen = self._seen_before

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["seen_tokens"] = list(self.seen_tokens)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Called before Lightning takes its progress from the checkpoint."""
        self._loaded_steps = checkpoint["global_step"]
        self._loaded_seen = checkpoint.get("seen_tokens", [0, 0])
        if align := getattr(self.trainer.datamodule, "align_progress", None):
            align(checkpoint)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """
        Raises:
            InputError: no sample of the optimizer step has an label tokens.
        """
        self._targets += batch["max_labels_per_rank"]
        hidden_BND = self(batch["input_ids"], batch["position_ids"])
        share = self._share(hidden_BND, batch)
        self._add_to_window(share.detach(), self._answer_loss_sum(hidden_BND, batch), count_tokens(batch))
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self._check_targets()
            self._log_window()
        # Lightning divides by the accumulation steps and the strategy averages over the ranks: undo both.
        return share * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @torch.no_grad()
    def _answer_loss_sum(self, hidden_BND: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The sum over label tokens that weights per sample hide; costs a forward of the head on those tokens alone.

        0 where each token weighs the same: the loss itself says it.
        """
        if self._counts_tokens_alike:
            return torch.zeros((), device=hidden_BND.device)
        return self._total_loss(hidden_BND, batch, None)

    @property
    def _counts_tokens_alike(self) -> bool:
        return getattr(self.trainer.datamodule, "loss_weighting", "token") == "token"

    def _check_targets(self) -> None:
        """Of an optimizer step, whose loss would be 0, or 0 / 0."""
        targets, self._targets = self._targets, 0
        if targets == 0:
            raise InputError(
                f"no sample of step {self.trainer.global_step + 1} has an label tokens, so that there is nothing to "
                "learn from: look at the data with scripts/inspect_data.py"
            )

    def _add_to_window(self, *parts: Tensor) -> None:
        """Adds a micro-batch to what the optimizer step's earlier ones came to."""
        self._window = [*parts] if self._window is None else [a + b for a, b in zip(self._window, parts, strict=True)]

    def _log_window(self) -> None:
        """Logs, once an optimizer step, what the whole global batch was and the learning rate it is taken with."""
        (loss, answer_loss_sum, counts), self._window = self._window, None
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        self._seen_before = self._seen
        self._seen = counts + (counts.new_tensor(self._loaded_seen) if self._seen is None else self._seen)
        answer_loss = loss if self._counts_tokens_alike else answer_loss_sum / counts[1]
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, reduce_fx="sum")
        self.log("train/answer_loss", answer_loss, sync_dist=True, reduce_fx="sum")
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])
        # In float64: float32 cannot count beyond 16 million.
        self.log("train/tokens", self._seen[0].double())
        self.log("train/answer_tokens", self._seen[1].double())

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips as Lightning does, and logs the norm before it, which clipping by norm computes anyway."""
        plugin = self.trainer.precision_plugin
        if not _clips_as_torch_does(plugin):
            return self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        parameters = list(plugin.main_params(optimizer))
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()  # of gradients that ranks share
        self.log("train/grad_norm", norm)
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_end(self, *_) -> None:
        """DeepSpeed keeps the gradients to itself, and tells their norm after the step."""
        norm = getattr(self.trainer.model, "get_global_grad_norm", lambda: None)()
        if self._window is None and norm is not None:
            self.log("train/grad_norm", float(norm))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if not batch or batch["max_labels_per_rank"] == 0:
            return  # there are no validation files: callbacks have their turn; or no answer on any rank
        share = self.answer_loss(batch) * self.trainer.world_size
        self.log("val/loss", share, prog_bar=True, sync_dist=True, batch_size=int(batch["num_tokens"]))

    def configure_optimizers(self):
        """AdamW with decay on matrices only; linear warm-up, then cosine to 0 at the last step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        # Where ZeRO-3 has cut a matrix into flat parts, it remembers the shape.
        is_matrix = [len(getattr(p, "ds_shape", p.shape)) >= 2 for p in trained]
        groups = [
            {"params": [*compress(trained, is_matrix)], "weight_decay": self.weight_decay},
            {"params": [*compress(trained, map(not_, is_matrix))], "weight_decay": 0.0},
        ]
        # Lightning's mixed precision refuses to clip gradients for a fused optimizer.
        fused = self.device.type in ("cuda", "npu") and "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fused)
        factor = warmup_cosine(self.warmup_steps, self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def count_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Tokens of a micro-batch without padding, and those of them that are learned: int64 [2]."""
    return torch.stack([batch["lengths"].sum(), (batch["labels"] != IGNORE_INDEX).sum()])


def _clips_as_torch_does(plugin: Precision) -> bool:
    """Not so those of DeepSpeed and FSDP, where a process does not hold the whole gradient."""
    return type(plugin).clip_grad_by_norm is Precision.clip_grad_by_norm and not isinstance(plugin, DeepSpeedPrecision)
