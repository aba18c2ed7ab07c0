"""The tables of bench_generate.py."""

from itertools import groupby
from typing import Any

_COLUMNS = ("prefill s", "ms a token", "GPU kernels ms", "ratio", "cache MiB", "to dense", "read rate", "peak GiB")


def print_decoding(found: list[dict[str, Any]]) -> None:
    """Prints a table for each length and batch; a row without figures says why."""
    rows = [row for row in found if "batch" in row]
    first = next((row for row in rows if "copy_gb_s" in row), None)
    if first is not None:
        print(f"\n{first['card']}, measured copy rate {first['copy_gb_s']:.0f} GB/s read and written")
    for (length, batch), group in groupby(rows, key=lambda row: (row["length"], row["batch"])):
        print(f"\n{length} prompt tokens, batch {batch}\n")
        _print_header("", *_COLUMNS)
        for row in group:
            cells = [row["failed"]] if "failed" in row else _cells(row)
            _print_row(row["system"], *cells, *[""] * (len(_COLUMNS) - len(cells)))


def _cells(row: dict[str, Any]) -> list[str]:
    mean, busy, rate = row["mean_ms"], row.get("busy_ms"), read_rate(row)
    return [
        f"{row['prefill_s']:.2f}",
        f"{mean:.2f}",
        f"{busy:.2f}" if busy else "",
        f"{mean / busy:.2f}" if busy else "",
        f"{row['held_bytes'] / 2**20:.0f}",
        f"{row['held_bytes'] / row['dense_bytes']:.3f}",
        f"{rate:.0%}" if rate else "",
        f"{row['peak_gib']:.1f}" if "peak_gib" in row else "",
    ]


def read_rate(row: dict[str, Any]) -> float | None:
    """Bytes that attention reads in a second, to the copy rate; None without a profile.

    Attention reads all keys and values that are held, once a step.
    """
    attention_ms = row.get("groups", {}).get("attention")
    if not attention_ms:
        return None
    return row["held_bytes"] / (attention_ms / 1000) / (row["copy_gb_s"] * 1e9)


def print_longest(found: list[dict[str, Any]]) -> None:
    """Prints the longest contexts, if there are any."""
    rows = [row for row in found if row["row"].endswith(", longest context")]
    if rows:
        print("\nThe longest prompt that fits: the cache's storage and the forward pass of a piece\n")
        _print_header("", "tokens", "cache GiB", "free before GiB")
    for row in rows:
        name = row["row"].removesuffix(", longest context")
        if "failed" in row:
            _print_row(name, row["failed"], "", "")
        else:
            _print_row(name, str(row["longest_tokens"]), f"{row['cache_gib']:.2f}", f"{row['memory_gib']:.2f}")


def print_layers(found: list[dict[str, Any]]) -> None:
    """Prints one layer's attention over complete prompts, if that was measured."""
    for row in found:
        if "layer_ms" not in row:
            continue
        print(f"\n{row['row']}, attention with its cache\n")
        _print_header("", "ms", "against dense FlashAttention-4")
        dense = next(iter(row["layer_ms"].values()))
        for name, ms in row["layer_ms"].items():
            _print_row(name, f"{ms:.2f}", f"{dense / ms:.2f}x")


def _print_header(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)
