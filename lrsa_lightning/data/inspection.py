"""A summary of prepared data, to read before a long run starts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from lrsa_lightning.data.encoder import TokenizedSample
from lrsa_lightning.data.prepared import PreparedSamples
from lrsa_lightning.data.sample import Sample


def summary(samples: Sequence[Sample], prepared: PreparedSamples, seq_len: int) -> str:
    """Counts, languages, and the fraction of label tokens."""
    languages = Counter(sample.language for sample in samples)
    split = ", ".join(f"{language} {count / len(samples):.1%}" for language, count in languages.most_common())
    report = ", ".join(f"{count} {what}" for what, count in prepared.report.items())
    total = sum(prepared.num_ids)
    mean = total / len(prepared)
    return "\n".join(
        [
            f"samples         {report}",
            f"languages       {split}",
            f"tokens a row    mean {mean:.0f}, of data.seq_len {seq_len}: {mean / (seq_len + 1):.1%}",
            f"label tokens    {sum(prepared.num_labels) / total:.3%} of all; "
            f"least {min(prepared.num_labels)}, most {max(prepared.num_labels)} a sample",
        ]
    )


def draw_lengths(own: Sequence[int], prepared: PreparedSamples, seq_len: int, path: Path) -> None:
    """Draws histograms of the samples' lengths in tokens, as read and as prepared, as PNG.

    Args:
        own: lengths as read.
        prepared: the samples of training.
        seq_len: tokens of a training row, where a line is drawn.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    bins = _edges(max([*own, *prepared.num_ids]), seq_len)
    axes.hist(own, bins, alpha=0.6, label=f"as read: {len(own)} samples")
    axes.hist(prepared.num_ids, bins, alpha=0.6, label=f"prepared for training: {len(prepared)} samples")
    axes.axvline(seq_len, color="black", linestyle="--", linewidth=1, label=f"data.seq_len: {seq_len} tokens")
    axes.set(xlabel="tokens of a sample", ylabel="samples", yscale="log")
    axes.set_title("Lengths of the samples", fontsize=10, loc="left")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def _edges(longest: int, seq_len: int) -> list[float]:
    """About 60 bins. One ends after the longest sample that fits: its last token is a label only."""
    fitting = seq_len + 2
    parts = max(1, round(60 * fitting / max(longest, fitting)))
    return [fitting * i / parts for i in range(-(-(longest + 1) * parts // fitting) + 1)]


def dimmed(row: TokenizedSample, tokenizer, most: int = 1500) -> Text:
    """A sample's text. All but the label tokens is dimmed, and shown up to ``most`` characters from each end."""
    text, end = Text(), 0
    for start, stop in row.spans:
        read = tokenizer.decode(row.ids[end:start])
        if len(read) > 2 * most:
            read = f"{read[:most]}\n[... {len(read) - 2 * most} characters ...]\n{read[-most:]}"
        text.append(read, "dim").append(tokenizer.decode(row.ids[start:stop]), "bold green")
        end = stop
    return text
