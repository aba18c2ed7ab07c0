"""The model card of an exported folder: what it is, how it was trained, what it scores, how to load it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsa_lightning.attention import LRSA, AttentionMode
from lrsa_lightning.ruler.records import read_records
from lrsa_lightning.ruler.results import cell_scores
from lrsa_lightning.trained_model import RunCheckpoint, read_state
from lrsa_lightning.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The keys of a run that say how it was trained. Paths and secrets are not among them.
_MODEL_KEYS = ("rope_parameters", "lora", "optimizer", "scheduler", "lr", "betas", "weight_decay", "warmup_steps")
_DATA_KEYS = ("seq_len", "global_batch_size", "packing", "template", "loss_weighting", "too_long", "extend")
_TRAINER_KEYS = ("precision", "gradient_clip_val")


@dataclass(frozen=True)
class Card:
    """What the card says.

    Attributes:
        trained: the exported checkpoint.
        mode: the attention mode of the run, if it is known.
        tokenizer: of the folder.
        is_adapter: whether the folder holds an adapter alone.
        warnings: what users of other engines must know.
    """

    trained: RunCheckpoint
    mode: AttentionMode | None
    tokenizer: "PreTrainedTokenizerBase"
    is_adapter: bool
    warnings: Sequence[str]

    def write(self, folder: Path) -> None:
        """Writes README.md. It says nothing of a license: none is known."""
        from huggingface_hub import ModelCard, ModelCardData

        base = self.trained.run["model"]["name_or_path"]
        # Paths are absolute in the configuration of a run; the folder may be gone.
        is_hub_id = base is not None and not Path(base).is_absolute() and not Path(base).exists()
        about = ModelCardData(
            base_model=base if is_hub_id else None,
            library_name="peft" if self.is_adapter else "transformers",
            pipeline_tag="text-generation",
            tags=["lrsa-lightning", "long-context", "kv-cache-compression"],
        )
        template = (files(__package__) / "card.md.jinja").read_text(encoding="utf-8")
        card = ModelCard.from_template(about, template_str=template, **self._parts(base if is_hub_id else None))
        (folder / "README.md").write_text(str(card).rstrip() + "\n", encoding="utf-8")

    @property
    def _tokenizer_class(self) -> str:
        """What loads the tokenizer: AutoTokenizer would take that of Qwen for each Qwen2 model."""
        from transformers import PreTrainedTokenizerFast

        return "PreTrainedTokenizerFast" if type(self.tokenizer) is PreTrainedTokenizerFast else "AutoTokenizer"

    @cached_property
    def _state(self) -> dict[str, Any]:
        return read_state(self.trained.path)

    def _parts(self, base: str | None) -> dict[str, Any]:
        return {
            "name": self.trained.folder.name,
            "base": base,
            "is_local": base is None and self.trained.run["model"]["name_or_path"] is not None,
            "is_adapter": self.is_adapter,
            "tokenizer": self._tokenizer_class,
            "version": __version__,
            "mode": type(self.mode).__name__ if self.mode is not None else None,
            "is_compressed": type(self.mode) is LRSA,
            "trained_ratios": _settings(self.mode).get("trained_ratios"),
            "attention": _table(("setting", "value"), _settings(self.mode).items()),
            "training": _table(("", ""), self._training().items()),
            "files": self._files(),
            "scores": self._scores(),
            "warnings": self.warnings,
        }

    def _training(self) -> dict[str, Any]:
        """Counts of the data seen, and the settings that are not null."""
        run, seen = self.trained.run, self._state.get("seen_tokens") or (None, None)
        found = {"optimizer steps": self._state.get("global_step")}
        found |= dict(zip(("tokens seen", "label tokens seen"), seen, strict=True))
        for section, keys in (("model", _MODEL_KEYS), ("data", _DATA_KEYS), ("trainer", _TRAINER_KEYS)):
            found |= {f"{section}.{key}": run.get(section, {}).get(key) for key in keys}
        found["data.template"] = self.trained.template if found.get("data.template") else None
        found["seed_everything"] = run.get("seed_everything")
        return {key: value for key, value in found.items() if value is not None}

    def _files(self) -> str:
        """Names and the first digits of the SHA-256 of the training files; empty where they are not known."""
        known = self._state.get("LongContextDataModule", {}).get("train_files") or []
        return known and _table(("training file", "SHA-256"), [(name, f"{digest[:16]}...") for name, digest in known])

    def _scores(self) -> str:
        """The scores of the RULER check after the checkpoint's step; empty where there was no check."""
        path = self.trained.folder / "ruler" / f"step-{self._state.get('global_step', 0):06d}.jsonl"
        cells = [cell for cell in cell_scores(read_records(path)) if cell.score is not None] if path.exists() else []
        rows = [(c.task, c.length, c.budget, c.score, "" if c.stderr is None else c.stderr, c.count) for c in cells]
        return rows and _table(("task", "length", "cache", "score", "standard error", "samples"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = [*head]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _settings(mode: AttentionMode | None) -> dict[str, Any]:
    return mode.settings() if type(mode) is LRSA else {}
