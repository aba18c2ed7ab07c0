"""RefGPT-Fact (wenbopan/RefGPT-Fact-v2-8x): a reference, and a dialogue about it as one text."""

import re

from lrsa_lightning.data.sources.turns import last_exchange

COLUMNS = ("dialogue",)
EXPECTED = '{"reference": ..., "dialogue": "<user 1>: ... <assistant 1>: ..."}'

_TURN = re.compile(r"<(user|assistant)(?:[ _]?\d+)?>\s*[:：]?\s*", re.IGNORECASE)


def parse(row) -> tuple[str, str, str]:
    """Document, question and answer: the dialogue up to its last question belongs to the document."""
    _, *pieces = _TURN.split(row["dialogue"])
    turns = [(role.lower(), text.strip()) for role, text in zip(pieces[::2], pieces[1::2], strict=True)]
    document, question, answer = last_exchange(turns)
    reference = (row.get("reference") or "").strip()
    return (reference + "\n\n" if reference else "") + document, question, answer
