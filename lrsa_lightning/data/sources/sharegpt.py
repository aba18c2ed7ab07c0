"""ShareGPT's `conversations`."""

from lrsa_lightning.data.sources.turns import last_exchange

COLUMNS = ("conversations",)
EXPECTED = '{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}'

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def parse(row) -> tuple[str, str, str]:
    """Document, question and answer."""
    return last_exchange([(_ROLES.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]])
