"""The folder of a recipe: rows to train on and to validate on, and the sources that an evaluation may use."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.recipe.maker import Made, RowMaker, make_rows
from lrsa_lightning.recipe.rows import Fitter
from lrsa_lightning.recipe.split import split
from lrsa_lightning.ruler.sources import parse, read_content

MANIFEST, TRAIN, VAL = "recipe.json", "train.jsonl", "val.jsonl"
# Changes when the same settings would give other rows.
_FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """What rows there are.

    Attributes:
        length: tokens of a row, data.seq_len.
        num_rows: rows to train on.
        num_val_rows: rows to validate on, made of held-out articles.
        template: data.template.
        question_fraction: of the rows; the others have needles.
        held_out: fraction of the sources that is kept for the evaluation.
        seed: of all draws.
    """

    length: int = 4096
    num_rows: int = 4800
    num_val_rows: int = 64
    template: TemplateName = "base"
    question_fraction: float = 0.5
    held_out: float = 0.5
    seed: int = 42


def make_folder(recipe: Recipe, files: Mapping[str, Path], tokenizer, folder: Path, num_workers: int) -> dict[str, Any]:
    """Makes a folder, unless it exists with the same recipe; its manifest, which is written last.

    Args:
        recipe: what to make.
        files: of `squad`, `hotpotqa` and `essays`.
        tokenizer: counts the tokens.
        folder: gets train.jsonl, val.jsonl, the held-out part of each file, and recipe.json.
        num_workers: processes.

    Raises:
        InputError: the folder holds another recipe, a file has another format, a part of it has no question, or nothing
            fits the length.
    """
    wanted = _settings(recipe, files, tokenizer)
    if (made := _read(folder / MANIFEST)) is not None:
        if made.get("recipe") != wanted:
            differing = sorted(key for key in wanted if made.get("recipe", {}).get(key) != wanted[key])
            raise InputError(f"{folder} holds another recipe ({', '.join(differing)}): give another --output")
        return made
    parts = split({name: read_content(name, path) for name, path in files.items()}, recipe.held_out)
    for contents in (parts.train, parts.held_out):
        _check(contents)
    fitter, fraction = Fitter.of(tokenizer, recipe.template, recipe.length), recipe.question_fraction
    manifest: dict[str, Any] = {"recipe": wanted, "rows": {}}
    for name, contents, count in (
        (TRAIN, parts.train, recipe.num_rows),
        (VAL, parts.held_out, recipe.num_val_rows),
    ):
        maker = RowMaker(contents, fitter, f"{recipe.seed}:{name}", fraction)
        manifest["rows"][name] = _write(folder / name, list(make_rows(maker, count, num_workers)))
    for name, content in parts.held_out.items():
        write_text(folder / f"{name}.json", json.dumps(content, ensure_ascii=False))
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def _check(contents: Mapping[str, Any]) -> None:
    for name, content in contents.items():
        try:
            parse(name, content)
        except ValueError as error:
            raise InputError(
                f"--{name}: a part of the file has {error}: give a larger file, or change --held_out"
            ) from error


def _write(path: Path, made: list[Made]) -> dict[str, Any]:
    text = "".join(json.dumps(row.row, ensure_ascii=False) + "\n" for row in made)
    write_text(path, text)
    return {
        "kinds": Counter(row.kind for row in made),
        "mean_tokens": round(sum(row.tokens for row in made) / max(1, len(made)), 1),
        "sha256": _sha256(text.encode("utf-8")),
    }


def _settings(recipe: Recipe, files: Mapping[str, Path], tokenizer) -> dict[str, Any]:
    known = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return {
        "format": _FORMAT,
        **asdict(recipe),
        "tokenizer": _sha256(known.encode("utf-8")),
        "files": {name: _sha256(path.read_bytes()) for name, path in files.items()},
    }


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not the manifest of a recipe ({error}): give another --output") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
