"""The figure of the mask against the dense mask of `naive`."""

import pytest
import torch
from matplotlib.figure import Figure

from lrsa_lightning import LRSA
from lrsa_lightning.attention.naive import lrsa_mask
from lrsa_lightning.cli import main
from lrsa_lightning.diagnosis.mask_figure import DROPPED, KEPT, LATER, OWN, PREVIOUS, SINK, mask_parts
from tests.runs import refusal


@pytest.mark.parametrize("sizes", [{}, {"retention_ratio": 0.25}, {"scorer": "window"}])
def test_what_is_coloured_is_what_the_dense_mask_shows(sizes):
    mode = LRSA(lag_size=8, sink_size=3, **sizes)
    parts, positions = mask_parts(mode, 45)
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 45, 8, generator=generator)[None] for _ in range(2))
    assert torch.equal((parts != LATER) & (parts != DROPPED), lrsa_mask(k, v, mode.rule())[0, 0])
    assert positions.tolist() == [*range(45)]
    # By hand: query 40 is in chunk 4, 35 .. 42; chunk 3 begins at 27.
    row = parts[40].tolist()
    assert row[:3] == [SINK] * 3
    assert row[27:35] == [PREVIOUS] * 8
    assert row[35:41] == [OWN] * 6
    assert row[41:] == [LATER] * 4
    assert sum(part == KEPT for part in row[3:27]) == 3 * mode.rule().kept
    assert parts[2].tolist() == [SINK] * 3 + [LATER] * 42


def test_a_long_sequence_is_drawn_at_some_positions():
    mode = LRSA(lag_size=8, sink_size=3)
    every, _ = mask_parts(mode, 80)
    some, positions = mask_parts(mode, 80, most=20)
    assert torch.equal(some, every[positions][:, positions])


def test_the_command_draws_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **keys: (drawn.append(self), save(self, *args, **keys)))
    main(["mask"])
    assert capsys.readouterr().out == "mask.png\n"
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    names = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert names == ["own chunk", "previous chunk", "kept", "sink", "dropped, not seen"]
    main(["mask", "--attention", "LRSA", "--attention.lag_size", "64", "--tokens", "500", "--output", "b.png"])
    assert "sink 16, chunks of 64, 32 kept of each, 500 tokens" in drawn[1].get_suptitle()
    assert "must be a .png file" in refusal(capsys, ["mask", "--output", "x.pdf"])
    assert "keeps every token" in refusal(capsys, ["mask", "--attention", "Vanilla"])
