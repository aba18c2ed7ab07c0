"""The files of findings: JSON and two pictures."""

from pathlib import Path
from typing import Any

from lrsa_lightning.attention import LRSA
from lrsa_lightning.diagnosis.figures import draw_held, draw_kept
from lrsa_lightning.diagnosis.findings import Findings


def write_files(findings: Findings, folder: Path, mode: LRSA, name: str, prefix: str = "", **about: Any) -> list[Path]:
    """Writes findings.json, kept.png and held.png.

    Args:
        findings: of a model.
        folder: made if necessary.
        mode: whose rule was applied.
        name: of the model, in titles.
        prefix: of the files' names.
        about: what the JSON holds besides the rule.

    Returns:
        the paths, in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, kept, held = (folder / f"{prefix}{file}" for file in ("findings.json", "kept.png", "held.png"))
    findings.write(path, **about, attention=mode.settings())
    rule, kept_fraction = mode.rule(), mode.rule().kept / mode.lag_size
    title = f"{name}: {mode.scorer}, L = {rule.lag_size}, r = {kept_fraction:.3g}, S = {rule.sink_size}"
    draw_kept(findings, kept, title, rule.lag_size, kept_fraction)
    draw_held(findings, held, title)
    return [path, kept, held]
