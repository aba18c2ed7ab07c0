"""Tokenised samples in a memory-mapped Arrow file, written once for a key and then only read."""

import hashlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from operator import add
from pathlib import Path

import numpy as np

from lrsa_lightning.data.encoder import NothingToLearn, TokenizedSample
from lrsa_lightning.data.prepared_folder import ARROW, REPORT, alone, find_complete, partial_of
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.workers import Encode, encoded
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)

# Part of each key. It changes when the same samples are prepared or stored differently.
_FORMAT = 5
_NUM_LABELS = "num_answer"  # the column's name on disk, as of format 1; labels of the last answer alone


def content_key(contents: Sequence[str], tokenizer, **settings) -> str:
    """Hash of everything that prepared data depends on.

    Args:
        contents: a hash of each file, or the name of a hub data set.
        tokenizer: a transformers tokenizer, with its special tokens and chat template.
        settings: settings of reading and preparing.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    of_tokenizer = [tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template), special]
    parts = [_FORMAT, settings, of_tokenizer, list(contents)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


class PreparedSamples(Sequence[TokenizedSample]):
    """What `prepare` wrote. Indexing reads token ids from the disk.

    Attributes:
        folder: the folder that holds them.
        report: counts of the samples read, kept, left out and shortened.
        num_ids: tokens of each sample.
        num_labels: label tokens of each sample.
        content: hash of all their tokens, which does not depend on the library that stored them.
    """

    def __init__(self, folder: Path):
        import datasets

        self.folder = folder
        self._rows = datasets.Dataset.from_file(str(folder / ARROW)).with_format("numpy")
        written = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        self.report: dict[str, int] = written["counts"]
        self.content: str = written["content"]
        numbers = self._rows.with_format(None)
        self.num_ids: list[int] = numbers["num_ids"][:]
        earlier = (sum(spans[1::2]) - sum(spans[::2]) for spans in numbers["learned"][:])
        self.num_labels: list[int] = [*map(add, numbers[_NUM_LABELS][:], earlier)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenizedSample:
        row = self._rows[index]
        return TokenizedSample(row["ids"], int(row[_NUM_LABELS]), learned=row["learned"].tolist())


def prepare(
    folder: Path,
    samples: Sequence[Sample],
    encode: Encode,
    num_workers: int = 1,
    what: str = "samples",
    skip_malformed: bool = False,
) -> PreparedSamples:
    """Tokenises samples into ``folder``. If the process is killed, nobody reads what it left; the next call clears it.

    Args:
        folder: named by the data's key; used as it is when it exists and is complete.
        samples: the samples, in order.
        encode: sample -> token ids, or those of several rows; None, or no row, for a sample to leave out.
        num_workers: processes that tokenise.
        what: the samples' name in the progress bar.
        skip_malformed: leave out and count samples that have no label tokens or no prompt.

    Raises:
        InputError: the disk is full, a process that tokenises was killed, or a sample has no label tokens or no prompt.
    """
    with alone(folder):
        if not find_complete(folder):
            with partial_of(folder) as partial:
                _write(partial, samples, encode, num_workers, what, skip_malformed)
        return PreparedSamples(folder)


def checked_counts(prepared: PreparedSamples, what: str, seq_len: int) -> PreparedSamples:
    """Returns the samples, and warns about those that were left out or shortened.

    Raises:
        InputError: no sample is left.
    """
    counts = prepared.report
    if changed := counts["left out"] + counts["shortened"]:
        log.warning(
            "%d of %d samples are longer than data.seq_len %d: %d left out, %d shortened",
            *(changed, counts["read"], seq_len, counts["left out"], counts["shortened"]),
        )
    if malformed := counts.get("malformed"):
        log.warning(
            "%d of %d samples left out: the tokenizer has no tokens for them, or its chat template no place",
            *(malformed, counts["read"]),
        )
    if len(prepared) == 0:
        raise InputError(
            f"no sample fits data.seq_len {seq_len}: raise it, set data.too_long to shorten, or give "
            f"data.{what}_files shorter texts"
        )
    return prepared


def wait_for(folder: Path) -> PreparedSamples:
    """The samples that another process prepares. It polls: a collective would time out for a large file."""
    while not folder.is_dir():
        time.sleep(0.2)
    return PreparedSamples(folder)


def _write(
    folder: Path, samples: Sequence[Sample], encode: Encode, num_workers: int, what: str, skip_malformed: bool
) -> None:
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from rich.progress import track

    number = datasets.Value("int32")
    numbers = datasets.Sequence(number)
    features = datasets.Features({"ids": numbers, "num_ids": number, _NUM_LABELS: number, "learned": numbers})
    counts, content = Counter({"read": len(samples), "kept": 0, "left out": 0, "shortened": 0}), hashlib.sha256()
    with ArrowWriter(path=str(folder / ARROW), features=features, writer_batch_size=64) as writer:
        of_samples = encoded(samples, encode, num_workers)
        in_terminal = sys.stdout.isatty()
        if not in_terminal:
            log.info("preparing %d %s", len(samples), what)
        bar = {"total": len(samples), "transient": True, "disable": not in_terminal}
        # No variable holds the progress bar: an error then closes it at once, and not later from a thread of its own.
        for rows in track(of_samples, f"Preparing {what}", **bar):
            if isinstance(rows, NothingToLearn):
                if not skip_malformed:
                    raise rows
                counts["malformed"] += 1
                continue
            counts["kept" if rows else "left out"] += 1
            for row in rows:
                counts["shortened"] += row.shortened
                content.update(f"{len(row.ids)} {row.num_labels} ".encode() + np.asarray(row.ids, "<i4").tobytes())
                content.update(np.asarray(row.learned, "<i4").tobytes())
                labels = {_NUM_LABELS: row.num_labels, "learned": [*row.learned]}
                writer.write({"ids": row.ids, "num_ids": len(row.ids), **labels})
        writer.finalize()
    report = {"counts": counts, "content": content.hexdigest()}
    (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")
