"""Processes that tokenise."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from threading import Thread

import numpy as np

from lrsa_lightning.data.encoder import NothingToLearn, TokenizedSample
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.errors import InputError

Encode = Callable[[Sample], TokenizedSample | list[TokenizedSample] | None]
Encoded = list[TokenizedSample] | NothingToLearn

_worker: tuple[Sequence[Sample], Encode] | None = None  # a worker inherits them through its fork


def encoded(samples: Sequence[Sample], encode: Encode, num_workers: int) -> Iterator[Encoded]:
    """The samples' encodings, in order. Forked processes make them, which share samples and tokenizer.

    Raises:
        InputError: a process was killed.
    """
    if num_workers <= 1:
        yield from (_encode(sample, encode) for sample in samples)
        return
    # A forked tokenizer must not use threads; each worker has only one core anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(num_workers, context, initializer=_begin, initargs=(samples, encode)) as pool:
            yield from pool.map(_encode_at, range(len(samples)), chunksize=4)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that tokenises was killed, most likely because memory ran out: lower data.prepare_workers"
        ) from error


def _encode_at(index: int) -> Encoded:
    samples, encode = _worker
    return _encode(samples[index], encode)


def _encode(sample: Sample, encode: Encode) -> Encoded:
    try:
        found = encode(sample)
    except NothingToLearn as error:
        return error
    rows = found if isinstance(found, list) else [found] if found is not None else []
    # An array reaches the writing process, and then the file, many times faster than a list.
    return [replace(row, ids=np.asarray(row.ids, dtype=np.int32)) for row in rows]


def _begin(samples: Sequence[Sample], encode: Encode) -> None:
    """The parent handles Ctrl+C."""
    global _worker
    _worker = samples, encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Lets a worker end when its parent is killed, so that it releases what it inherited, such as locks."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)
