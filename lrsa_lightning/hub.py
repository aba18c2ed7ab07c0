"""The Hugging Face hub, whose absence is found out once and in seconds, instead of by every library's own retries."""

import logging
import re
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TIMEOUT_S = 5


def before_loading(name: str) -> None:
    """To be called before a library loads what may be a hub id.

    Where the hub cannot be reached, transformers, datasets and huggingface_hub look in their caches alone from then on,
    as with HF_HUB_OFFLINE=1. Each of them would try each file six times, over 23 seconds, and print a line each time.

    Args:
        name: a hub id, a folder or a file; the hub is asked for an id alone.
    """
    if _ID.fullmatch(name) and not Path(name).exists():
        _settle()


@cache
def _settle() -> None:
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    endpoint = huggingface_hub.constants.ENDPOINT
    if not _answers(endpoint):
        log.warning("%s cannot be reached: models, tokenizers and data are looked for in the cache alone", endpoint)
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def _answers(endpoint: str) -> bool:
    """Whether it does in time, through the session that the libraries use: with their proxies and certificates."""
    import huggingface_hub

    answers = []

    def ask() -> None:
        with suppress(Exception):  # of the network's and of proxies there are many kinds
            answers.append(huggingface_hub.get_session().head(endpoint, timeout=_TIMEOUT_S))

    # Its timeout does not cover the resolution of the name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_TIMEOUT_S)
    return bool(answers)
