"""A figure of the mask: what each query sees under a rule.

Shape suffixes: Q queries that are drawn, K keys that are drawn, N tokens.
"""

from pathlib import Path

import torch
from torch import Tensor

from lrsa_lightning.attention import LRSA
from lrsa_lightning.diagnosis.mass import Visibility

# Okabe and Ito's colours, which colour-blind people tell apart, by the part of the sequence that a key is in.
PARTS = {
    "later": "white",
    "dropped": "#e6e6e6",
    "sink": "#d55e00",
    "kept": "#009e73",
    "previous chunk": "#56b4e9",
    "own chunk": "#0072b2",
}
LATER, DROPPED, SINK, KEPT, PREVIOUS, OWN = range(len(PARTS))
_MOST_CELLS = 1000
_HEAD_DIM = 8


def mask_parts(mode: LRSA, num_tokens: int, most: int = _MOST_CELLS) -> tuple[Tensor, Tensor]:
    """Which part of the sequence each key is in for each query, as an index in `PARTS`.

    A sequence of random keys and values takes the place of a text.

    Args:
        mode: whose rule is drawn.
        num_tokens: of the sequence.
        most: of longer ones, so many evenly spaced positions are taken.

    Returns:
        int64 [Q, K], and the positions, int64 [Q]: those of the keys are the same.
    """
    rule, generator = mode.rule(), torch.Generator().manual_seed(0)
    k_1ND, v_1ND = (torch.randn(1, num_tokens, _HEAD_DIM, generator=generator) for _ in range(2))
    visibility = Visibility.of(rule, k_1ND, v_1ND, 0)
    number = min(num_tokens, most)
    key_K = torch.arange(number) * num_tokens // number
    query_Q1 = key_K.unsqueeze(-1)
    chunk_K = (key_K - rule.sink_size).div(rule.lag_size, rounding_mode="floor")
    parts_QK = torch.where(visibility.kept_GN[0, key_K], KEPT, DROPPED).repeat(number, 1)
    recent = key_K >= visibility.first_raw_N[query_Q1]
    is_own = chunk_K == chunk_K.unsqueeze(-1)
    parts_QK[recent] = PREVIOUS
    parts_QK[recent & is_own] = OWN
    parts_QK[:, key_K < rule.sink_size] = SINK
    parts_QK[key_K > query_Q1] = LATER
    return parts_QK, key_K


def draw_mask(mode: LRSA, num_tokens: int, path: Path) -> None:
    """Draws the mask of a rule as PNG: a row for each query, a column for each key."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    parts_QK, _ = mask_parts(mode, num_tokens)
    axes = (figure := Figure(figsize=(7.6, 5.6), layout="constrained")).subplots()
    colours = ListedColormap([*PARTS.values()])
    look = {"cmap": colours, "vmin": -0.5, "vmax": len(PARTS) - 0.5, "interpolation": "nearest"}
    axes.imshow(parts_QK, extent=(0, num_tokens, num_tokens, 0), **look)
    rule = mode.rule()
    for start in range(rule.sink_size, num_tokens, rule.lag_size):
        if start > rule.sink_size:  # a line could hide a narrow sink
            axes.plot([start, start], [start, num_tokens], color="white", linewidth=0.8)
        axes.plot([0, start], [start, start], color="white", linewidth=0.8)
    axes.set(xlabel="key", ylabel="query", xlim=(0, num_tokens), ylim=(num_tokens, 0))
    axes.spines[["top", "right"]].set_visible(False)
    about = f"sink {rule.sink_size}, chunks of {rule.lag_size}, {rule.kept} kept of each, {num_tokens} tokens"
    figure.suptitle(f"What a query sees: {about}", fontsize=10, x=0.02, ha="left")
    seen = [name for name in PARTS if name != "later"]
    handles = [Patch(color=PARTS[name], label=f"{name}, not seen" if name == "dropped" else name) for name in seen]
    axes.legend(handles=handles[::-1], loc="upper right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
