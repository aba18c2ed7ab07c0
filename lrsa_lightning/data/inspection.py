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


def draw_lengths(own: Sequence[int], prepared: PreparedSamples, path: Path) -> None:
    """Draws histograms of the samples' lengths in tokens, as read and as prepared, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bins = {"bins": 60, "range": (0, max([*own, *prepared.num_ids]))}
    axes.hist(own, **bins, alpha=0.6, label=f"as read ({len(own)})")
    axes.hist(prepared.num_ids, **bins, alpha=0.6, label=f"prepared ({len(prepared)})")
    axes.set(xlabel="tokens", ylabel="samples", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


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
