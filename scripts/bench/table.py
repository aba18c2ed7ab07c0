"""The tables of bench_step.py."""

from typing import Any

_COLUMNS = ("ms a step", "to the Trainer", "to dense FA-4", "tokens/s", "MFU", "dense MFU", "peak GiB", "GPU idle")


def print_table(found: list[dict[str, Any]], accumulates: bool) -> None:
    """Prints a row for each mapping of figures; a row without figures says why."""
    first = next((row for row in found if "failed" not in row), None)
    if first is not None:
        print(f"\n{first['card']}, measured bf16 matrix rate {first['matrix_tflops']:.1f} TFLOP/s")
    columns = ("", *_COLUMNS, *(("ms a micro-batch",) if accumulates else ()))
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    trainer, dense = (_ms_of(found, name) for name in ("plain Trainer", "Vanilla FlashAttention-4"))
    for row in found:
        cells = [row["failed"]] if "failed" in row else _cells(row, trainer, dense, accumulates)
        cells += [""] * (len(columns) - 1 - len(cells))
        print(f"| {' | '.join((row['row'], *cells))} |")
    print(flush=True)


def _ms_of(found: list[dict[str, Any]], name: str) -> float | None:
    """Milliseconds of the first row of that name: of the Trainer's, the one with Liger if there is one."""
    return next((row["median_ms"] for row in found if row["row"].startswith(name) and "failed" not in row), None)


def _cells(row: dict[str, Any], trainer: float | None, dense: float | None, accumulates: bool) -> list[str]:
    ms = row["median_ms"]
    cells = [
        f"{ms:.0f}" if ms > 100 else f"{ms:.1f}",
        *(f"{other / ms:.2f}x" if other else "" for other in (trainer, dense)),
        f"{row['tokens_per_second']:.0f}",
        f"{row['mfu']:.1%}",
        f"{row['mfu_dense']:.1%}",
        f"{row['peak_gib']:.1f}" if "peak_gib" in row else "",
        f"{row['idle']:.1%}" if "idle" in row else "",
    ]
    return [*cells, f"{row['ms_a_micro_batch']:.1f}"] if accumulates else cells


def print_profile(found: list[dict[str, Any]], most: int) -> None:
    """Prints the groups of kernels and the longest kernels of each row that was profiled."""
    for row in found:
        if "kernels" not in row:
            continue
        groups = ", ".join(f"{group} {ms:.1f}" for group, ms in row["groups"].items())
        print(f"{row['row']}, ms a step: {groups}; busy {row['busy_ms']:.1f} of {row['span_ms']:.1f}\n")
        print("| ms a step | calls a step | kernel |\n|---|---|---|")
        for name, ms, calls in row["kernels"][:most]:
            print(f"| {ms:.2f} | {calls:g} | {' '.join(name.split())[:110].replace('|', '/')} |")
        print(flush=True)
