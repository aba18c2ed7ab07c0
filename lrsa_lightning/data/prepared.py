"""Tokenised samples in a memory-mapped Arrow file, made once for a key and then only read."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lrsa_lightning.data.encoder import SampleEncoder, TokenizedSample
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.errors import InputError

# Goes into every key: changes when the same samples would be prepared differently.
_FORMAT = 2
_ARROW, _REPORT = "samples.arrow", "report.json"


def content_key(files: Sequence[Path | str], tokenizer, **settings) -> str:
    """Hash of all that prepared data depends on: what the files hold, the tokenizer, and the settings."""
    digest = hashlib.sha256(json.dumps([_FORMAT, settings], sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(str(tokenizer.chat_template).encode())
    for file in files:
        if isinstance(file, Path):
            with file.open("rb") as content:
                for block in iter(lambda: content.read(2**20), b""):
                    digest.update(block)
        else:
            digest.update(file.encode())
    return digest.hexdigest()[:20]


class PreparedSamples(Sequence[TokenizedSample]):
    """What `prepare` wrote: token ids read from disk when asked for.

    Attributes:
        folder: where they lie.
        report: counts of the samples read, kept, left out and shortened.
        num_ids: tokens of each sample.
        num_answer: learned tokens of each sample.
    """

    def __init__(self, folder: Path):
        import datasets

        self.folder = folder
        self._rows = datasets.Dataset.from_file(str(folder / _ARROW)).with_format("numpy")
        self.report: dict[str, int] = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        numbers = self._rows.with_format(None)
        self.num_ids: list[int] = numbers["num_ids"][:]
        self.num_answer: list[int] = numbers["num_answer"][:]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenizedSample:
        row = self._rows[index]
        return TokenizedSample(row["ids"], int(row["num_answer"]))


def prepare(
    folder: Path, samples: Sequence[Sample], encode: SampleEncoder, num_workers: int = 1, what: str = "samples"
) -> PreparedSamples:
    """Tokenises samples into ``folder``; a killed one leaves a folder that is never read.

    Args:
        folder: made by this call, named by the data's key; used as it is when it exists.
        samples: in the order they are to have.
        encode: sample -> token ids, or None for one to leave out.
        num_workers: processes that tokenise.
        what: the samples' name in the progress bar.

    Raises:
        InputError: the disk is full.
    """
    if folder.is_dir():
        return PreparedSamples(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        report = _write(partial / _ARROW, samples, encode, num_workers, what)
        (partial / _REPORT).write_text(json.dumps(report), encoding="utf-8")
        _publish(partial, folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f"no space left on the disk of {folder.parent}: set data.cache_dir to another") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PreparedSamples(folder)


def wait_for(folder: Path) -> PreparedSamples:
    """What another process prepares. Polled: a collective would time out while a large file is tokenised."""
    while not folder.is_dir():
        time.sleep(0.2)
    return PreparedSamples(folder)


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker, with the same content
            raise


def _write(path: Path, samples: Sequence[Sample], encode: SampleEncoder, num_workers: int, what: str) -> dict[str, int]:
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from rich.progress import track

    features = datasets.Features(
        {
            "ids": datasets.Sequence(datasets.Value("int32")),
            "num_ids": datasets.Value("int32"),
            "num_answer": datasets.Value("int32"),
        }
    )
    report = {"read": len(samples), "kept": 0, "left out": 0, "shortened": 0}
    with ArrowWriter(path=str(path), features=features, writer_batch_size=64) as writer:
        rows = _encoded(samples, encode, num_workers)
        for row in track(rows, f"Preparing {what}", total=len(samples), transient=True):
            if row is None:
                report["left out"] += 1
                continue
            report["kept"] += 1
            report["shortened"] += row.shortened
            writer.write({"ids": row.ids, "num_ids": len(row.ids), "num_answer": row.num_answer})
        writer.finalize()
    return report


_worker: tuple[Sequence[Sample], SampleEncoder] | None = None


def _encode_at(index: int) -> TokenizedSample | None:
    samples, encode = _worker
    row = encode(samples[index])
    # An array travels to the writing process, and from there to the file, many times faster than a list.
    return row if row is None else replace(row, ids=np.asarray(row.ids, dtype=np.int32))


def _encoded(samples: Sequence[Sample], encode: SampleEncoder, num_workers: int) -> Iterator[TokenizedSample | None]:
    """The samples' encodings in order, by processes that are forked and so share samples and tokenizer."""
    if num_workers <= 1:
        yield from map(encode, samples)
        return
    global _worker
    _worker = samples, encode
    # A forked tokenizer must not use threads; each worker has one core anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with multiprocessing.get_context("fork").Pool(num_workers) as pool:
            yield from pool.imap(_encode_at, range(len(samples)), chunksize=4)
    finally:
        _worker = None
