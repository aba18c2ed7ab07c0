"""Yukang/LongAlpaca-12k: an instruction that holds the document, and its output."""

COLUMNS = ("instruction", "output")
EXPECTED = '{"instruction": ..., "output": ...}'


def parse(row) -> tuple[str, str, str]:
    """Document, question and answer; `input`, where a row of Alpaca's format has it, is the document."""
    instruction, given = row["instruction"], row.get("input") or ""
    if given.strip():
        return given.rstrip() + "\n\n", instruction, row["output"]
    # LongAlpaca writes the question after the paper or book, on separate lines.
    text, parting, question = instruction.strip().rpartition("\n")
    return text + parting, question, row["output"]
