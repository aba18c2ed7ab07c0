"""Finds out once, in seconds, whether the Hugging Face hub can be reached; each library alone would retry for long.

It also keeps the libraries' progress bars out of log files.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TIMEOUT_S = 5


def before_loading(name: str) -> None:
    """Prepares for a library that loads what may be a hub id.

    If the hub cannot be reached, transformers, datasets and huggingface_hub then look only in their caches, as with
    HF_HUB_OFFLINE=1. Otherwise each would try each file six times, over 23 seconds, and print a line each time. The
    name of an existing folder or file does not contact the hub.
    """
    if _ID.fullmatch(name) and not Path(name).exists():
        _settle()


@contextmanager
def bars_in_terminals_only() -> Iterator[None]:
    """Hides the progress bars of transformers where stderr is no terminal: a file would hold each of their updates."""
    from transformers.utils import logging as of_transformers

    hides = of_transformers.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hides:
        of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        if hides:
            of_transformers.enable_progress_bar()


@cache
def _settle() -> None:
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    endpoint = huggingface_hub.constants.ENDPOINT
    if not _answers(endpoint):
        log.warning("%s cannot be reached: models, tokenizers and data are taken from the cache only", endpoint)
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def _answers(endpoint: str) -> bool:
    """Whether the hub answers in time, through the libraries' own session with its proxies and certificates."""
    import huggingface_hub

    answers = []

    def ask() -> None:
        with suppress(Exception):  # networks and proxies raise many kinds
            answers.append(huggingface_hub.get_session().head(endpoint, timeout=_TIMEOUT_S))

    # The session's timeout does not cover the resolution of the host name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_TIMEOUT_S)
    return bool(answers)
