"""Wrong inputs: what a refusal looks like, and tables of them."""

from pathlib import Path

import pytest


def refused(capsys, call, *said: str) -> None:
    """Whether a command ends with status 2 and one line, of which the further ones are indented, that says this."""
    with pytest.raises(SystemExit) as caught:
        call()
    error = capsys.readouterr().err
    lines = error.splitlines()
    assert caught.value.code == 2, error
    assert [line for line in lines if not line.startswith(" ")] == lines[:1], error
    assert lines[0].startswith("lrsa: error: "), error
    assert not [words for words in said if words not in error], error
    assert not Path("runs").exists()


def cases(table: list) -> pytest.MarkDecorator:
    """Parametrises by a table of what is wrong and what is said; ids are short."""
    ids = [
        f"{number}-{''.join(c for c in str(row[0]) if c.isalnum() or c in '._-')[:40]}"
        for number, row in enumerate(table)
    ]
    return pytest.mark.parametrize(("wrong", "said"), [(row[0], row[1:]) for row in table], ids=ids)


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


def write(name: str, content: str | bytes) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
