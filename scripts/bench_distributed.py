"""Times training steps of a Qwen2.5-1.5B shape with sequence parallelism, and prints a Markdown table.

Rows: each GPU alone, then full attention under Ulysses, LRSA under Ulysses and LRSA under context parallelism, over all
GPUs of the launch. Random weights and tokens, batch 1, bf16, activation checkpointing, module and strategies of
`lrsa fit`. Full attention is transformers' sdpa, and also FlashAttention-4 if flash-attn-4 is installed.
"received" is the data that the first rank gets per step for the shared sequence. "efficiency" is a row's tokens per
second over those of the same number of GPUs alone. "loss" is the last step's; rows of one attention agree up to bf16
rounding.
Usage: torchrun --nproc-per-node 2 scripts/bench_distributed.py [--lengths 65536 131072] [--strategy zero2]
"""

import atexit
import gc
import os
import re
import shutil
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from statistics import median

import lightning
import torch
from bench_attention import dense_fa4, print_versions
from bench_generate import LAYERS, VOCABULARY, shape
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from lrsa_lightning import LRSA, AttentionMode, Vanilla
from lrsa_lightning.command_line import ScriptParser
from lrsa_lightning.distributed import SequenceParallel, SPDDPStrategy, SPDeepSpeedStrategy, SPModelParallelStrategy
from lrsa_lightning.input_boundary import report_input_errors
from lrsa_lightning.module import LongContextModule
from lrsa_lightning.ranges import PositiveInt, PositiveUnitInterval

STRATEGIES = {
    "ddp": SPDDPStrategy,
    "fsdp2": SPModelParallelStrategy,
    "zero2": partial(SPDeepSpeedStrategy, stage=2),
    "zero3": partial(SPDeepSpeedStrategy, stage=3),
}
NUM_LABELS = 512


def random_weights(num_layers: int) -> str:
    """A folder with a model drawn on the GPU: `lrsa fit` draws on the host, which would take a minute per row."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    config = shape(2**18, num_layers, rope_theta=1e4)  # as the losses in docs/performance.md have it
    torch.manual_seed(0)
    with torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


class RandomRows(lightning.LightningDataModule):
    """The same row of random tokens at every step, cut into segments as in `lrsa fit`."""

    def __init__(self, seq_len: int, steps: int):
        super().__init__()
        self.seq_len, self.steps = seq_len, steps

    def train_dataloader(self) -> DataLoader:
        torch.manual_seed(0)
        ids = torch.randint(0, VOCABULARY, (1, self.seq_len))
        is_label = torch.arange(self.seq_len) >= self.seq_len - NUM_LABELS
        row = {
            "input_ids": ids,
            "labels": ids.masked_fill(~is_label, -100),
            "position_ids": torch.arange(self.seq_len)[None],
            "weights": is_label[None].float(),
            "lengths": torch.tensor([self.seq_len]),
            "num_tokens": torch.tensor(NUM_LABELS * self.trainer.strategy.data_parallel_size),
            "max_labels_per_rank": NUM_LABELS,
        }
        sharding = self.trainer.strategy.sharding
        return DataLoader([sharding.cut(row) if sharding else row] * self.steps, batch_size=None)


class StepTimes(Callback):
    """The times at which optimizer steps end, with the device synchronised, and the last loss."""

    def __init__(self):
        self.ends: list[float] = []
        self.loss = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_) -> None:
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.loss = float(trainer.callback_metrics["train/loss"])


def measure(mode: AttentionMode, shared: SequenceParallel, seq_len: int, options) -> tuple[float, float, float, float]:
    """Seconds per step, peak GiB of the first GPU, GiB that it receives per step, and the last loss."""
    gc.collect()  # the model of the previous row
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    lightning.seed_everything(0, verbose=False)
    times = StepTimes()
    trainer = Trainer(
        accelerator="cuda",
        devices=options.world_size,
        precision="bf16-true",
        strategy=STRATEGIES[options.strategy](sequence_parallel=shared),
        max_steps=options.steps,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = LongContextModule(mode, options.weights, seq_len=seq_len, gradient_checkpointing=True)
    trainer.fit(module, RandomRows(seq_len, options.steps))
    # The first step compiles, the second still fills caches.
    seconds = median(end - start for start, end in pairwise(times.ends[1:]))
    sharding = trainer.strategy.sharding
    received = sum(sharding.group.received.values()) * 2 / 2**30 / options.steps if sharding else 0.0
    if isinstance(trainer.strategy, SPDeepSpeedStrategy):
        trainer.strategy.deepspeed_engine.destroy()  # otherwise its hooks keep weights and states on the GPU
    return seconds, torch.cuda.max_memory_allocated() / 2**30, received, times.loss


def fa4(module, q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, *_, **__) -> tuple[Tensor, None]:
    """FlashAttention-4 for transformers. Some of its versions do not find the package by themselves."""
    return dense_fa4(q_BHND, k_BGND, v_BGND).transpose(1, 2), None


def rows(size: int, ratios: list[float]) -> list[tuple[str, AttentionMode, SequenceParallel]]:
    """All rows to measure; those in which each GPU runs alone come first."""
    modes = {f"LRSA r={ratio:g}": LRSA(retention_ratio=ratio) for ratio in ratios}
    modes["Vanilla sdpa"] = Vanilla()
    if find_spec("flash_attn") is not None:
        AttentionInterface.register("fa4", fa4)
        AttentionMaskInterface.register("fa4", lambda *_, **__: None)
        modes["Vanilla FlashAttention-4"] = Vanilla("fa4")
    alone = [(name, mode, SequenceParallel(1)) for name, mode in modes.items()]
    if size == 1:
        return alone
    ulysses = [(name, mode, SequenceParallel(size, "ulysses")) for name, mode in modes.items()]
    context = [(name, mode, SequenceParallel(size, "context")) for name, mode in modes.items() if "LRSA" in name]
    return alone + ulysses + context


@report_input_errors
def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[65536, 131072], help="tokens of a sequence")
    parser.add_argument("--ratios", type=PositiveUnitInterval, nargs="+", default=[0.5], help="of LRSA")
    parser.add_argument("--strategy", choices=STRATEGIES, default="zero2", help="how weights and states are divided")
    parser.add_argument(
        "--rows", default="", help="regular expression for the rows to measure, such as 'LRSA r=0.5 1, alone'"
    )
    parser.add_argument("--layers", type=PositiveInt, default=LAYERS, help="decoder layers; fewer take less time")
    parser.add_argument("--steps", type=PositiveInt, default=5, help="steps of each row, two of them to warm up")
    options = parser.parse_args()
    options.weights = random_weights(options.layers)
    options.world_size, is_first = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0") == "0"
    if is_first:
        print(f"{options.world_size} x", end=" ")
        print_versions(options.strategy)
        print()
        print("| tokens | attention | shared by | s a step | tokens/s | efficiency | peak GiB | received GiB | loss |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for seq_len in options.lengths:
        alone = {}
        for name, mode, shared in rows(options.world_size, options.ratios):
            by = f"{shared.size}, {shared.kind}" if shared.size > 1 else "1, alone"
            if not re.search(options.rows, f"{name} {by}"):
                continue
            seconds, peak, received, loss = measure(mode, shared, seq_len, options)
            speed = seq_len * (options.world_size // shared.size) / seconds
            if shared.size == 1:
                alone[name] = speed
            if is_first:
                efficiency = f"{speed / alone[name]:.0%}" if name in alone else ""
                print(
                    f"| {seq_len} | {name} | {by} | {seconds:.3f} | {speed:.0f} | {efficiency} "
                    f"| {peak:.1f} | {received:.2f} | {loss:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
