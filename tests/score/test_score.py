"""Scores by themselves: the dot product, names, and the rules for a class of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.score import SCORES, DotScore, Score, resolve_score
from graphattn.testing import check_score


def test_dot_by_hand() -> None:
    q = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    k = torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
    gate = torch.tensor([[[1.0, 10.0], [2.0, 3.0]]])
    score = DotScore()
    assert score(q, k).tolist() == [[11.0, 6.0]]
    assert score(q, k, gate).tolist() == [[83.0, 18.0]]
    assert score.default_scale(16) == 0.25
    assert not list(score.parameters())


@pytest.mark.parametrize("edge_channels", [None, 4], ids=["plain", "gated"])
def test_dot_on_every_graph(edge_channels: int | None) -> None:
    check_score(DotScore(), edge_channels=edge_channels)


@pytest.mark.parametrize("name", SCORES.names())
def test_every_score_of_the_table(name: str) -> None:
    kind = SCORES.get(name)
    assert issubclass(kind, Score)
    try:
        score = resolve_score(name)
    except ArgumentError as error:
        assert "parameters of its own" in str(error)  # the caller must make it
        return
    assert isinstance(score, kind)
    check_score(score)


def test_resolve() -> None:
    score = DotScore()
    assert resolve_score(score) is score
    with pytest.raises(ArgumentError, match="unknown score 'dott'; did you mean 'dot'"):
        resolve_score("dott")
    with pytest.raises(ArgumentTypeError, match="score must be a name, a Score or an edge tensor, got function"):
        resolve_score(lambda q, k: q)  # type: ignore[arg-type]


def test_a_score_with_parameters_must_be_made_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Weighted(Score):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(heads))

    monkeypatch.setitem(SCORES._entries, "weighted", Weighted)
    with pytest.raises(ArgumentError, match="'weighted' has parameters of its own: make a Weighted\\(heads"):
        resolve_score("weighted")


def test_a_subclass_with_another_formula_is_not_the_fused_score() -> None:
    class Renamed(DotScore):
        """Nothing new."""

    class Other(DotScore):
        def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
            return (q_target - k_source).square().sum(-1)

    class Claims(DotScore):
        fused = "dot"

        def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
            return super().edge(q_target, k_source, edge)

    assert (DotScore.fused, Renamed.fused, Other.fused, Claims.fused) == ("dot", "dot", None, "dot")
