"""wenbopan/anti-haystack, and any file of documents with questions (see `data.fields` for other column names)."""

COLUMNS = ("document", "question", "answer")
EXPECTED = '{"document": ..., "question": ..., "answer": ...}'


def parse(row) -> tuple[str, str, str]:
    """Document, question and answer."""
    return row["document"].rstrip() + "\n\n", row["question"].strip(), row["answer"]
