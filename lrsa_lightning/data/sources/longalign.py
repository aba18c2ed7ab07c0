"""THUDM/LongAlign-10k (now zai-org/LongAlign-10k), and any chat in OpenAI's `messages`."""

from lrsa_lightning.data.sources.turns import last_exchange

COLUMNS = ("messages",)
EXPECTED = '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'


def parse(row) -> tuple[str, str, str]:
    """Document, question and answer."""
    return last_exchange([(turn["role"], turn["content"]) for turn in row["messages"]])
