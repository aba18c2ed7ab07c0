"""Checks whether a model, an attention mode, a length, a strategy and a tokenizer fit together."""

import logging

from lightning import Trainer

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.hybrid import check_packed_rows
from lrsa_lightning.distributed.choice import check_strategy
from lrsa_lightning.distributed.optimizers import check_optimizer_strategy
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.errors import InputError
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.pretrained.decoder import check_length

log = logging.getLogger(__name__)


def check_together(config, attention: AttentionMode, seq_len: int, trainer: Trainer) -> None:
    """Checks the parts against each other before any data or weight is read; logs the attention's remark.

    The trainer has the strategy and the datamodule; a row has seq_len tokens.

    Raises:
        InputError: two parts do not fit together.
    """
    text = config.get_text_config(decoder=True)
    check_length(config, seq_len)
    attention.check(config)
    if remark := attention.remark(seq_len, text.num_hidden_layers):
        log.warning(remark)
    if trainer.training and attention.needs_total_steps and trainer.max_steps == trainer.max_epochs == -1:
        raise InputError(
            f"{attention!r} divides the steps of the run, which has no number of steps: set trainer.max_steps or "
            "trainer.max_epochs"
        )
    check_strategy(trainer)
    if isinstance(trainer.strategy, SequenceParallelStrategy):
        trainer.strategy.check_sharding(attention, config, seq_len)
    if getattr(trainer.datamodule, "packing", False):
        check_packed_rows(text)
    tokenizer = getattr(trainer.datamodule, "tokenizer", None)
    if tokenizer is not None and len(tokenizer) > text.vocab_size:
        raise InputError(
            f"data.tokenizer has {len(tokenizer)} tokens, the model's vocabulary {text.vocab_size}: "
            "they do not belong together"
        )


def check_optimizer(settings: OptimizerSettings, betas: tuple[float, float], trainer: Trainer) -> None:
    """Checks the optimizer of a fit, on its own and against the strategy; does nothing where nothing is trained.

    Raises:
        InputError: its library is missing, it refuses an argument, or it cannot run under the strategy.
    """
    if trainer.training:
        settings.check(betas)
        check_optimizer_strategy(settings.found, settings.args or {}, trainer.strategy)
