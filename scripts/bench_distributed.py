"""Times training steps on sequences that several devices share, and prints a Markdown table.

Rows: full attention (FlashAttention-4) and LRSA, under Ulysses and context parallelism, by each strategy and over each
link, through `lrsa fit` in its default configuration. The link "host" sets NCCL_P2P_DISABLE=1: the devices then
exchange data through the host's memory, as a stand-in for a slow link. Options that this command does not know go to
`lrsa fit`. "received" is what a rank gets per step for the shared sequence, in bfloat16. "to full attention" compares
with full attention under Ulysses, "efficiency" with as many devices that have a sequence each (--kinds alone ...), both
by the same strategy and link. "loss" is the last logged one.
Usage: python scripts/bench_distributed.py [--length 131072] [--strategies zero2 fsdp2] [--links direct host]
"""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench.inputs import Inputs, config_keys
from bench.processes import Failed, results
from bench.runs import FLASH_4, Row, Settings

from lrsa_lightning import LRSA, AttentionMode, Vanilla
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import AtLeastTwo, PositiveFiniteFloat, PositiveInt, PositiveUnitInterval
from lrsa_lightning.versions import versions

STRATEGIES = {
    "ddp": ("SPDDPStrategy", {}),
    "fsdp2": ("SPModelParallelStrategy", {}),
    "zero2": ("SPDeepSpeedStrategy", {"stage": 2}),
    "zero3": ("SPDeepSpeedStrategy", {"stage": 3}),
}
LINKS = {"direct": {}, "host": {"NCCL_P2P_DISABLE": "1"}}
COLUMNS = (
    *("attention", "shared by", "strategy", "link", "s a step", "tokens/s", "to full attention", "efficiency"),
    *("peak GiB of each rank", "received GiB of each rank", "loss"),
)


@dataclass(frozen=True)
class SharedRow:
    """A row of the table.

    Attributes:
        attention: its name.
        mode: the attention.
        kind: ulysses, context, or alone, where each device has a sequence of its own.
        strategy: of `STRATEGIES`.
        link: of `LINKS`.
        devices: how many.
    """

    attention: str
    mode: AttentionMode
    kind: str
    strategy: str
    link: str
    devices: int

    @property
    def name(self) -> str:
        return f"{self.attention} {self.kind} {self.strategy} {self.link}"

    @property
    def sequences(self) -> int:
        return self.devices if self.kind == "alone" else 1

    def row(self) -> Row:
        class_name, arguments = STRATEGIES[self.strategy]
        sharing = {} if self.kind == "alone" else {"sequence_parallel": {"size": self.devices, "kind": self.kind}}
        trainer = {
            "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
            "devices": self.devices,
            "strategy": {
                "class_path": f"lrsa_lightning.distributed.{class_name}",
                "init_args": {**arguments, **sharing},
            },
        }
        return Row(self.name, self.mode, trainer=trainer, global_batch=self.sequences)


def work(settings: Settings, shared: SharedRow) -> dict[str, Any]:
    """One row, on one of its ranks."""
    row, rank = shared.row(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if (reason := row.left_out()) is not None:
        return {"failed": reason}
    if rank == 0:
        settings.inputs.write(device)
    settings.inputs.wait()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"card": card, **row.run(settings, device)}


def rows(options: argparse.Namespace) -> list[list[SharedRow]]:
    """The rows of each link and strategy, which share processes; full attention comes first."""
    modes = {"full attention": Vanilla(FLASH_4)}
    if options.sdpa:
        modes = {"full attention": Vanilla()}
    modes |= {f"LRSA r={ratio:g}": LRSA(lag_size=options.lag, retention_ratio=ratio) for ratio in options.ratios}
    groups = [
        [
            SharedRow(name, mode, kind, strategy, link, options.devices)
            for kind in options.kinds
            for name, mode in modes.items()
        ]
        for link in options.links
        for strategy in options.strategies
    ]
    return [[row for row in group if re.search(options.rows, row.name)] for group in groups]


def measure(options: argparse.Namespace, settings: Settings) -> Iterator[tuple[SharedRow, dict[str, Any]]]:
    """Each row with its figures, or with why it has none."""
    for group in rows(options):
        environment = LINKS[group[0].link] if group else {}
        for row, of_ranks in results(partial(work, settings), group, options.row_timeout, options.devices, environment):
            if isinstance(of_ranks, Failed):
                yield row, {"failed": str(of_ranks)}
                continue
            first = of_ranks[0]
            for name in ("peak_gib", "received_gib"):
                first[name] = [figures[name] for figures in of_ranks if name in figures]
            yield row, first


def cells(row: SharedRow, figures: dict[str, Any], speeds: dict[tuple[str, ...], float], length: int) -> list[str]:
    """The cells of a row; notes its tokens per second."""
    named = [row.attention, f"{row.devices}, {row.kind}", row.strategy, row.link]
    if "failed" in figures:
        return [*named, figures["failed"], *[""] * (len(COLUMNS) - 5)]
    seconds = figures["median_ms"] / 1000
    speed = row.sequences * length / seconds
    speeds[row.attention, row.kind, row.strategy, row.link] = speed
    full = speeds.get(("full attention", "ulysses", row.strategy, row.link))
    alone = speeds.get((row.attention, "alone", row.strategy, row.link))
    return [
        *named,
        *(f"{seconds:.3f}", f"{speed:.0f}", f"{speed / full:.2f}x" if full else ""),
        f"{speed / alone:.0%}" if alone else "",
        *(", ".join(f"{value:.2f}" for value in figures[name]) for name in ("peak_gib", "received_gib")),
        f"{figures['losses'][-1]:.4f}" if figures["losses"] else "",
    ]


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = ScriptParser(__doc__)
    found = torch.cuda.device_count()
    parser.add_argument("--length", type=PositiveInt, default=131072, help="tokens of a sequence")
    parser.add_argument("--labels", type=PositiveInt, default=512, help="label tokens of a sequence, its last ones")
    parser.add_argument("--model", default="qwen2.5-1.5b", help="a shape (tiny, qwen2.5-7b, ...), or JSON keys")
    parser.add_argument("--ratios", type=PositiveUnitInterval, nargs="+", default=[0.5], help="of LRSA")
    parser.add_argument("--lag", type=PositiveInt, default=1024, help="lag size of LRSA")
    parser.add_argument("--devices", type=AtLeastTwo, default=max(2, found), help="that share a sequence; default: all")
    parser.add_argument("--kinds", choices=("alone", "ulysses", "context"), nargs="+", default=["ulysses", "context"])
    parser.add_argument("--strategies", choices=STRATEGIES, nargs="+", default=["zero2"], help="who holds what")
    parser.add_argument("--links", choices=LINKS, nargs="+", default=["direct"], help="how devices exchange data")
    parser.add_argument("--sdpa", action="store_true", help="full attention by sdpa instead of FlashAttention-4")
    parser.add_argument("--rows", default="", help="regular expression, such as 'LRSA r=0.5 context zero2'")
    parser.add_argument("--warmup", type=PositiveInt, default=2, help="steps before the measured ones")
    parser.add_argument("--steps", type=PositiveInt, default=3, help="measured steps")
    parser.add_argument("--row-timeout", type=PositiveFiniteFloat, default=150.0, help="seconds for one row")
    parser.add_argument("--json", type=Path, help="file for all figures, written after each row")
    options, passed = parser.parse_known_args(args)
    try:
        options.keys = config_keys(options.model, options.length)
    except ValueError as error:
        parser.error(f"--model: {error}")
    return options, passed


@report_input_errors
def main(args: list[str] | None = None) -> None:
    options, passed = parse(args)
    software = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"{shlex.join(sys.argv)}\n{software}\n")
    for link in options.links:
        for name, value in LINKS[link].items():
            print(f"link {link}: with {name}={value}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    speeds: dict[tuple[str, ...], float] = {}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        steps = options.warmup + options.steps + 1  # one more, so that no epoch ends in a measured step
        inputs = Inputs(Path(folder), options.keys, options.length, options.labels, options.devices * steps)
        settings = Settings(inputs, 1, 1, options.warmup, options.steps, 0, tuple(passed))
        for row, figures in measure(options, settings):
            print(f"| {' | '.join(cells(row, figures, speeds, options.length))} |", flush=True)
            found.append({"row": row.name, **figures})
            if options.json is not None:
                options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    cards = sorted({figures["card"] for figures in found if "card" in figures})
    print(f"\n{options.devices} x {' or '.join(cards) or 'no device'}")


if __name__ == "__main__":
    main()
