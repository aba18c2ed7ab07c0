"""The LightningModule: a Hugging Face causal decoder, an attention mode, the loss, the optimizer.

Shape suffixes: B rows of a micro-batch, N = seq_len, D hidden size.
"""

import math
from typing import Any

import lightning
import torch
from torch import Tensor

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import linear_cross_entropy


class LongContextModule(lightning.LightningModule):
    """Fine-tunes a causal decoder on long contexts with a swappable attention.

    The defaults are the paper's run: AdamW, lr 1.25e-5, no warm-up, cosine to 0.
    """

    def __init__(
        self,
        attention: AttentionMode,
        name_or_path: str | None = None,
        from_config: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        seq_len: int = 32768,
        lr: float = 1.25e-5,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        warmup_steps: int = 0,
        gradient_checkpointing: bool = False,
        loss_chunk_size: int = 1024,
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
            loss_chunk_size: answer tokens whose logits exist at a time.

        Raises:
            InputError: not exactly one of name_or_path and from_config is given.
        """
        super().__init__()
        if (name_or_path is None) == (from_config is None):
            raise InputError("give exactly one of model.name_or_path (pretrained) and model.from_config (random)")
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
        self._window_loss: Tensor | None = None
        self._loaded_steps = 0

    def prepare_data(self) -> None:
        """Checks model, attention, length and vocabulary against each other before any data or weight is read.

        Raises:
            InputError: they do not fit together.
        """
        from lrsa_lightning.pretrained import check_length, load_config

        config = load_config(self.name_or_path, self.from_config, self.rope_parameters)
        check_length(config, self.seq_len)
        self.attention.check(config)
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)
        if tokenizer is not None and len(tokenizer) > config.vocab_size:
            raise InputError(
                f"data.tokenizer has {len(tokenizer)} tokens, the model's vocabulary {config.vocab_size}: "
                "they do not belong together"
            )

    def configure_model(self) -> None:
        """Loads or makes the model and installs the attention mode; does nothing the second time."""
        if self.model is not None:
            return
        from lrsa_lightning.pretrained import load_config, load_model

        config = load_config(self.name_or_path, self.from_config, self.rope_parameters)
        self.model = load_model(config, self.name_or_path)
        self.attention.install(self.model)
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, N, D] of right-padded rows under the installed mode."""
        decoder = self.model.get_decoder()
        return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state

    def answer_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """This micro-batch's share of the global batch's mean loss per answer token, or per sample."""
        hidden_BND = self(batch["input_ids"], batch["position_ids"])
        head = self.model.get_output_embeddings()
        total = linear_cross_entropy(hidden_BND, head, batch["labels"], self.loss_chunk_size, batch["weights"])
        return total / batch["num_tokens"]

    @property
    def trained_steps(self) -> int:
        """Optimizer steps behind the weights; `lrsa validate` makes none, but loads some."""
        return max(self.trainer.global_step, self._loaded_steps)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Called before Lightning takes its progress from the checkpoint."""
        self._loaded_steps = checkpoint["global_step"]
        if align := getattr(self.trainer.datamodule, "align_progress", None):
            align(checkpoint)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        share = self.answer_loss(batch)
        self._log_window(share.detach(), batch_idx)
        # Lightning divides by the accumulation steps and the strategy averages over the ranks: undo both.
        return share * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def _log_window(self, share: Tensor, batch_idx: int) -> None:
        """Logs, once an optimizer step, the loss of the whole global batch and the learning rate it is taken with."""
        self._window_loss = share if self._window_loss is None else self._window_loss + share
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.log("train/loss", self._window_loss, prog_bar=True, sync_dist=True, reduce_fx="sum")
            self.log("train/lr", self.optimizers().param_groups[0]["lr"])
            self._window_loss = None

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if not batch:
            return  # there are no validation files: callbacks have their turn
        share = self.answer_loss(batch) * self.trainer.world_size
        self.log("val/loss", share, prog_bar=True, sync_dist=True, batch_size=int(batch["num_tokens"]))

    def configure_optimizers(self):
        """AdamW with decay on matrices only; linear warm-up, then cosine to 0 at the last step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        # Lightning's mixed precision refuses to clip gradients for a fused optimizer.
        fused = self.device.type == "cuda" and "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fused)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
