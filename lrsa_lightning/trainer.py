"""Lightning's Trainer with ranges of its numbers, and the precision `bf16-master`."""

from datetime import timedelta
from typing import Any, Literal, get_type_hints

from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy, StrategyRegistry

from lrsa_lightning import precision as precisions
from lrsa_lightning.ranges import (
    CountOrEndless,
    CountOrFraction,
    Devices,
    Duration,
    NonNegativeFiniteFloat,
    NonNegativeInt,
    PositiveCountOrFraction,
    PositiveInt,
    checked,
)

_OF_LIGHTNING = get_type_hints(Trainer.__init__)
_Precision, _Plugins = _OF_LIGHTNING["precision"], _OF_LIGHTNING["plugins"]


class RangedTrainer(Trainer):
    """Lightning's Trainer, which here refuses meaningless values that Lightning accepts silently, or fails on later."""

    @checked
    def __init__(
        self,
        *,
        devices: PositiveInt | Devices | list[NonNegativeInt] = "auto",
        num_nodes: PositiveInt = 1,
        max_steps: CountOrEndless = -1,
        min_steps: NonNegativeInt | None = None,
        max_epochs: CountOrEndless | None = None,
        min_epochs: NonNegativeInt | None = None,
        limit_train_batches: PositiveCountOrFraction | None = None,
        limit_val_batches: CountOrFraction | None = None,
        val_check_interval: PositiveCountOrFraction | Duration | timedelta | dict[str, Any] | None = None,
        check_val_every_n_epoch: PositiveInt | None = 1,
        num_sanity_val_steps: CountOrEndless | None = None,
        log_every_n_steps: PositiveInt | None = None,
        accumulate_grad_batches: PositiveInt = 1,
        max_time: Duration | timedelta | dict[str, int] | None = None,
        gradient_clip_val: NonNegativeFiniteFloat | None = None,
        precision: Literal["bf16-master"] | _Precision = None,
        strategy: str | Strategy = "auto",
        plugins: _Plugins = None,
        **further,
    ):
        """
        Args:
            devices: how many, or which; -1 and auto take all.
            num_nodes: hosts.
            max_steps: optimizer steps; -1 for no limit, 0 to train nothing.
            min_steps: optimizer steps before an early stop.
            max_epochs: passes over the data; -1 for no limit.
            min_epochs: passes over the data before an early stop.
            limit_train_batches: micro-batches of an epoch, or a fraction of them.
            limit_val_batches: micro-batches of a validation, or a fraction of them; 0 for no validation.
            val_check_interval: micro-batches between validations, a fraction of an epoch, or a time.
            check_val_every_n_epoch: epochs between validations; null counts micro-batches across epochs.
            num_sanity_val_steps: micro-batches validated before the first step; -1 for all.
            log_every_n_steps: optimizer steps between logged ones.
            accumulate_grad_batches: follows from data.global_batch_size; leave it out.
            max_time: of the training, as days:hours:minutes:seconds.
            gradient_clip_val: greatest norm of the gradient; 0 and null do not clip.
            precision: bf16-master computes in bfloat16 and keeps float32 master weights; others are Lightning's.
            strategy: name of a strategy, or a strategy.
            plugins: Lightning's.
            **further: Lightning's own.
        """
        own = {name: value for name, value in locals().items() if name not in ("self", "further", "__class__")}
        if precision == precisions.NAME:
            own |= _with_masters(strategy, plugins)
        super().__init__(**own, **further)


def _with_masters(strategy: str | Strategy, plugins: Any) -> dict[str, Any]:
    """The precision and the plugins that give a strategy float32 masters. DeepSpeed's bfloat16 always has them."""
    if isinstance(strategy, str):
        strategy = StrategyRegistry[strategy]["strategy"] if strategy in StrategyRegistry else None
    kind = strategy if isinstance(strategy, type) else type(strategy)
    if issubclass(kind, DeepSpeedStrategy):
        return {"precision": "bf16-true"}
    given = plugins if isinstance(plugins, list) else [plugins] if plugins else []
    shards = issubclass(kind, ModelParallelStrategy)
    plugin = precisions.MasterPrecision() if shards else precisions.MasterWeights()
    return {"precision": None, "plugins": [*given, plugin]}
