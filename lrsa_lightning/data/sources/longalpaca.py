"""Yukang/LongAlpaca-12k: an instruction that holds the document, and its output."""

COLUMNS = ("instruction", "output")
EXPECTED = '{"instruction": ..., "output": ...}'


def parse(row) -> tuple[str, str, str]:
    """Document, question and answer; `input`, where Alpaca's own format has one, is the document."""
    instruction, given = row["instruction"], row.get("input") or ""
    if given.strip():
        return given.rstrip() + "\n\n", instruction, row["output"]
    # LongAlpaca writes the question behind the paper or book, on lines of its own.
    text, parting, question = instruction.strip().rpartition("\n")
    return text + parting, question, row["output"]
