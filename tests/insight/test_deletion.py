"""Deletion curves, boxes and pictures, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graphattn import patterns
from graphattn.errors import ArgumentError
from graphattn.insight import (
    DeletionCurve,
    box_scores,
    deletion_curve,
    plot_deletion,
    plot_graph_relevance,
    plot_relevance,
)


class Quadrant(nn.Module):
    """The class of an image of 4 x 4 pixels is its brightest quadrant; an image without one is of class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 2).mean(1).flatten(1) * 8


def bright(*classes: int) -> tuple[Tensor, Tensor]:
    images = torch.zeros(len(classes), 2, 4, 4)
    for image, number in zip(images, classes, strict=True):
        image[:, 2 * (number // 2) :, 2 * (number % 2) :][:, :2, :2] = 1
    return images, torch.tensor(classes)


def test_a_perfect_relevance_and_its_reverse() -> None:
    images, labels = bright(1, 2, 3)
    relevance = nn.functional.avg_pool2d(images, 2).mean(1)
    morf = deletion_curve(Quadrant(), images, labels, relevance, steps=4)
    assert morf.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert morf.score.tolist() == [1, 0, 0, 0, 0]  # the one that counts went first
    assert morf.area_over == pytest.approx(1 - 0.125)
    lerf = deletion_curve(Quadrant(), images, labels, relevance, order="lerf", steps=4)
    assert lerf.score.tolist() == [1, 1, 1, 1, 0] and lerf.area_over == pytest.approx(0.125)
    worst = deletion_curve(Quadrant(), images, labels, -relevance, steps=4)
    assert worst.score.tolist() == lerf.score.tolist()


def test_probability_steps_fill_and_batches() -> None:
    images, labels = bright(1, 2, 3)
    relevance = nn.functional.avg_pool2d(images, 2).mean(1)
    curve = deletion_curve(Quadrant(), images, labels, relevance, steps=2, measure="probability", batch_size=2)
    p = torch.tensor([8.0, 0, 0, 0]).softmax(0)[0].item()
    assert curve.score.tolist() == pytest.approx([p, 0.25, 0.25]) and curve.share.tolist() == [0, 0.5, 1]
    # Deleted pixels as bright as the object: another quadrant wins nothing, ties go to the first class.
    filled = deletion_curve(Quadrant(), images, labels, -relevance, steps=4, fill=torch.tensor([1.0, 1.0]))
    assert filled.score.tolist() == [1, 0, 0, 0, 0]
    uneven = deletion_curve(Quadrant(), images, labels, relevance, steps=3)
    assert uneven.share.tolist() == [0, 0.25, 0.75, 1]  # whole patches only


def test_equal_relevance_goes_in_order() -> None:
    images, labels = bright(0, 3)
    curve = deletion_curve(Quadrant(), images, labels, torch.zeros(2, 2, 2), steps=4)
    # The first image loses its object at once, the second at last; an empty image counts as class 0.
    assert curve.score.tolist() == [1, 1, 1, 1, 0.5]


def test_boxes() -> None:
    relevance = torch.tensor([[[0.9, 0.1], [0.2, 0.3]], [[0.0, 0.0], [0.0, 1.0]]])
    exact = torch.tensor([[0, 0, 4, 4], [4, 4, 8, 8]])
    assert box_scores(relevance, exact, (8, 8)) == (1.0, 1.0)
    # The second box covers the patches of 0.0 above: of its pixels none is above an outside one.
    other = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4]])
    found = box_scores(relevance, other, (8, 8))
    assert found.roc_auc == pytest.approx((1 + (0.5 * 2 / 3)) / 2)  # ties count half
    metrics = pytest.importorskip("sklearn.metrics")
    ragged = torch.tensor([[1, 0, 7, 3], [2, 2, 6, 8]])
    expected = [[], []]
    for maps, (left, top, right, bottom) in zip(relevance, ragged.tolist(), strict=True):
        mask = torch.zeros(8, 8)
        mask[top:bottom, left:right] = 1
        pixels = maps.repeat_interleave(4, 0).repeat_interleave(4, 1).flatten()
        expected[0].append(metrics.roc_auc_score(mask.flatten(), pixels))
        expected[1].append(metrics.average_precision_score(mask.flatten(), pixels))
    assert box_scores(relevance, ragged, (8, 8)) == pytest.approx([sum(values) / 2 for values in expected])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"order": "most"}, "order must be 'morf' or 'lerf'"),
        ({"measure": "loss"}, "measure must be 'accuracy' or 'probability'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"relevance": torch.zeros(2, 3, 3)}, "relevance .* of patches that divide the image"),
        ({"labels": torch.zeros(3).long()}, "images must be"),
    ],
    ids=str,
)
def test_bad_input(change: dict, text: str) -> None:
    images, labels = bright(1, 2)
    given = {"model": Quadrant(), "images": images, "labels": labels, "relevance": torch.zeros(2, 2, 2), **change}
    with pytest.raises(ArgumentError, match=text):
        deletion_curve(**given)


def test_bad_boxes() -> None:
    with pytest.raises(ArgumentError, match="patches must divide the image, got 3 x 3 of 8 x 8"):
        box_scores(torch.zeros(1, 3, 3), torch.zeros(1, 4), (8, 8))
    with pytest.raises(ArgumentError, match=r"boxes \[B, 4\], got"):
        box_scores(torch.zeros(2, 2, 2), torch.zeros(1, 4), (8, 8))


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("networkx")
    ax = plot_relevance(torch.rand(3, 8, 8), torch.rand(2, 2), box=(1, 1, 5, 6))
    assert len(ax.images) == 2 and len(ax.patches) == 1
    assert ax.images[1].get_extent() == [0, 8, 8, 0]
    ax.figure.savefig(tmp_path / "image.png")
    graph = patterns.grid(3, 3)
    for positions in (None, torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], 1)):
        ax = plot_graph_relevance(graph, torch.arange(9.0), positions=positions)
        assert len(ax.collections[0].get_segments()) == graph.num_edges
        ax.figure.savefig(tmp_path / "graph.png")
    curve = DeletionCurve(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), "morf")
    ax = plot_deletion({"softmax": curve}, ax=ax.figure.add_subplot())
    assert ax.get_legend().texts[0].get_text() == "softmax (morf, area over 0.500)"
    ax.figure.savefig(tmp_path / "curve.png")
    for wrong in (
        lambda: plot_relevance(torch.rand(2, 8, 8), torch.rand(2, 2)),
        lambda: plot_graph_relevance(graph, torch.rand(8)),
    ):
        with pytest.raises(ArgumentError, match="must be"):
            wrong()
