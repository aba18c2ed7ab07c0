"""What a plan is about: a run's model, lengths, batches and settings, from its configuration."""

from dataclasses import dataclass, replace
from typing import Any

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.data.sampler import accumulation_steps
from lrsa_lightning.errors import InputError
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.layer_shape import LayerShape, like_layers
from lrsa_lightning.plan.model_size import ModelSize
from lrsa_lightning.plan.ruler_check import RulerCheck
from lrsa_lightning.plan.sequence import rank_shape
from lrsa_lightning.plan.states import Precision, precision_of
from lrsa_lightning.pretrained.quantisation import Quantisation


@dataclass(frozen=True)
class Run:
    """A run to be planned.

    Attributes:
        config: the text decoder's.
        size: parameters of the model.
        mode: the attention mode.
        seq_len: tokens of a row.
        rows: of a micro-batch.
        global_batch_size: rows of an optimizer step.
        loss_chunk_size: label tokens whose logits exist at a time.
        precision: trainer.precision.
        recompute: model.recompute.
        is_fused: whether norms, RoPE and SwiGLU are one kernel each.
        division: what devices share.
        max_steps: optimizer steps; None where the configuration gives no number.
        ruler: the RULER check; None where there is none.
        optimizer: which, with its arguments.
        quantisation: of the weights beside adapters; None where they are not quantised.
    """

    config: Any
    size: ModelSize
    mode: AttentionMode
    seq_len: int
    rows: int
    global_batch_size: int
    loss_chunk_size: int
    precision: str
    recompute: str
    is_fused: bool
    division: Division
    max_steps: int | None = None
    ruler: RulerCheck | None = None
    optimizer: OptimizerSettings = OptimizerSettings()  # noqa: RUF009  frozen
    quantisation: Quantisation | None = None

    @classmethod
    def of(cls, given: Any, module: Any, devices: int) -> "Run":
        """
        Args:
            given: the parsed configuration of `lrsa fit`: model, data and trainer.
            module: the LongContextModule of it; no weights are loaded.
            devices: of all hosts.

        Raises:
            InputError: the model cannot be found, or the plan does not cover model, precision or strategy.
        """
        _check_attention(module.attention)
        config = module.starting_model.load_config()
        return cls(
            config=config.get_text_config(decoder=True),
            size=ModelSize.of(config, module.starting_model),
            mode=module.attention.for_length(module.seq_len),
            seq_len=module.seq_len,
            rows=given.data.micro_batch_size,
            global_batch_size=given.data.global_batch_size,
            loss_chunk_size=module.loss_chunk_size,
            precision=str(given.trainer.precision),
            recompute=module.recompute,
            is_fused=module.fused_layers is not False,
            division=Division.of(given.trainer.strategy, devices),
            max_steps=given.trainer.max_steps if given.trainer.max_steps > 0 else None,
            ruler=RulerCheck.of(given.trainer.callbacks, module.seq_len),
            optimizer=module.optimizer,
            quantisation=module.starting_model.quantisation,
        )

    @property
    def bytes_of(self) -> Precision:
        """Bytes of a number under this precision and division."""
        return precision_of(self.precision, self.division)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in an optimizer step.

        Raises:
            InputError: the global batch is not a multiple of what all ranks read at a time.
        """
        return accumulation_steps(self.global_batch_size, self.rows, self.division.data_parallel_size)

    def phases(self) -> "list[tuple[Run, float]]":
        """The run with each attention that its steps can have, alone; and the part of the steps that has it."""
        return [(replace(self, mode=mode), part) for mode, part in self.mode.phases()]

    def shapes(self) -> list[LayerShape]:
        """The layers as one rank sees them.

        Raises:
            InputError: the sequence-parallel degree is impossible; names the possible ones.
        """
        precision, sequence = self.bytes_of, self.division.sequence_parallel
        settings = self.rows, self.seq_len, precision.element, precision.residual, self.is_fused
        first = like_layers(self.config, self.mode, self.seq_len)
        shapes = {layer: rank_shape(self.config, self.mode, sequence, *settings, layer) for layer in {*first}}
        code_bytes = 0.0 if self.quantisation is None else self.quantisation.bytes_a_number
        trained = {"adapters": self.size.adapters, "code_bytes": code_bytes}
        return [replace(shapes[layer], **trained) for layer in first]

    @property
    def has_plain_mlp(self) -> bool:
        """Whether the MLP's layers are plain products, which the fused MLP needs."""
        adapters = self.size.adapters
        return self.quantisation is None and (adapters is None or not adapters.in_mlp)


def _check_attention(mode: AttentionMode) -> None:
    if getattr(mode, "implementation", None) == "eager" or mode.execution.backend == "naive":
        raise InputError(f"the plan does not cover {mode!r}, which holds the scores of all pairs of tokens")
