"""A summary of prepared data, to read before a long run starts."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from rich.text import Text

from lrsa_lightning.data.encoder import TokenizedSample
from lrsa_lightning.data.prepared import PreparedSamples
from lrsa_lightning.data.sample import Sample

# Colours are lost in a file or a pipe.
BEGIN, END = ">>>", "<<<"


def summary(
    samples: Sequence[Sample], own: Sequence[int], prepared: PreparedSamples, seq_len: int, templates: Sequence[str]
) -> str:
    """Counts, languages, templates, lengths against the length of a row, and the fraction of label tokens.

    Args:
        samples: as read.
        own: tokens of each.
        prepared: the samples of training.
        seq_len: tokens of a training row.
        templates: of each sample, by name.
    """
    total, lengths = sum(prepared.num_ids), sorted(own)
    mean = total / len(prepared)
    report = ", ".join(f"{count} {what}" for what, count in prepared.report.items())
    longer = sum(length > seq_len for length in own)
    middle, most = lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10]
    return "\n".join(
        [
            f"samples         {report}, in {len(prepared)} rows",
            f"languages       {_shares(map(language, samples))}",
            f"templates       {_shares(templates)}",
            f"tokens as read  median {middle}, 90% up to {most}, most {lengths[-1]}; "
            f"{longer} of {len(own)} samples are longer than data.seq_len {seq_len}",
            f"tokens a row    mean {mean:.0f}, of data.seq_len {seq_len}: {mean / (seq_len + 1):.1%}",
            f"label tokens    {sum(prepared.num_labels) / total:.3%} of all; "
            f"least {min(prepared.num_labels)}, most {max(prepared.num_labels)} a sample",
        ]
    )


def language(sample: Sample) -> str:
    """Chinese, Japanese or Korean; the script of other languages, which many share."""
    if sample.language != "other":
        return {"zh": "Chinese", "ja": "Japanese", "ko": "Korean"}[sample.language]
    letters = islice(filter(str.isalpha, sample.text), 1000)
    scripts = Counter(unicodedata.name(letter, "unknown").split()[0].capitalize() for letter in letters)
    return f"{scripts.most_common(1)[0][0]} script" if scripts else "without letters"


def _shares(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(f"{name} {count / counts.total():.1%}" for name, count in counts.most_common())


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


def marked(row: TokenizedSample, tokenizer, most: int = 1500) -> Text:
    """A sample's text, with what is learned between `BEGIN` and `END`.

    The rest is dimmed, and shown up to ``most`` characters from each end. What is learned is shown so, too, where it is
    longer.
    """
    text, end = Text(), 0
    for start, stop in row.spans:
        text.append(_cut(tokenizer.decode(row.ids[end:start]), most), "dim")
        text.append(f"{BEGIN}{_cut(tokenizer.decode(row.ids[start:stop]), most)}{END}", "bold green")
        end = stop
    return text


def _cut(text: str, most: int) -> str:
    if len(text) <= 2 * most:
        return text
    return f"{text[:most]}\n[... {len(text) - 2 * most} characters ...]\n{text[-most:]}"
