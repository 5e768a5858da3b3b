"""Pictures hold what they should; looked at by eye as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.insight import plot_map, plot_table, plot_tree

pytest.importorskip("matplotlib")


def test_a_map_marks_sinks_and_lines(tmp_path: Path) -> None:
    weights = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).tril()
    sinks = torch.zeros(12, dtype=torch.bool)
    sinks[[2, 7]] = True
    ax = plot_map(weights, sinks=sinks, lines=[3], groups=[4, 8])
    assert [text.xy[0] for text in ax.texts] == [2, 7]
    line = ax.lines[-1]
    assert line.get_xdata().tolist() == [0, 8] and line.get_ydata().tolist() == [3, 11]
    shown = ax.images[0].get_array()
    assert bool(shown.mask[0, 5]) and not bool(shown.mask[5, 0])
    ax.figure.savefig(tmp_path / "map.png")
    with pytest.raises(ArgumentError, match="positive"):
        plot_map(torch.zeros(3, 3))


def test_a_table_names_its_cells() -> None:
    ax = plot_table(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ["a", "b"], ["c", "d"], deviation=torch.full((2, 2), 0.5))
    assert [text.get_text() for text in ax.texts] == ["1.0\n±0.5", "2.0\n±0.5", "3.0\n±0.5", "4.0\n±0.5"]
    with pytest.raises(ArgumentError, match=r"\[1, 2\]"):
        plot_table(torch.zeros(2, 2), ["a"], ["c", "d"])


def test_a_tree_hangs_from_its_root() -> None:
    ax = plot_tree(torch.tensor([-1, 0, 1, 1, 0]), torch.arange(5.0))
    places = torch.as_tensor(ax.collections[1].get_offsets().tolist())
    assert places[:, 1].tolist() == [0, -1, -2, -2, -1]
    assert float(places[1, 0]) == pytest.approx(float(places[[2, 3], 0].mean()))
    assert len(ax.collections[0].get_segments()) == 4


def test_what_has_no_number_hides_nothing() -> None:
    nan = float("nan")
    dots = plot_tree(torch.tensor([-1, 0, 1, 1]), torch.tensor([1.0, nan, 2.0, 3.0])).collections[1]
    assert dots.get_sizes().tolist() == [20.0, 20.0, 80.0, 140.0] and len(dots.get_offsets()) == 4
    cells = plot_table(torch.tensor([[nan, 0.0], [5.0, 9.0]]), ["a", "b"], ["c", "d"]).texts
    assert [text.get_color() for text in cells] == ["black", "white", "white", "black"]
    weights = torch.tensor([[0.5, nan], [0.2, 0.8]])
    assert plot_map(weights).images[0].norm.vmax == pytest.approx(0.8)
