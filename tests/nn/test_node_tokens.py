"""Feature rows of nodes in the places of node tokens."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.nn import NodeTokens


@pytest.mark.parametrize("nodes", [3, 50])  # the table is projected, or the rows of the tokens
def test_nodes_take_the_places_of_their_tokens(nodes: int) -> None:
    features = torch.randn(nodes, 4)
    module = NodeTokens(features, 6)
    rows = torch.randn(2, 5, 6, requires_grad=True)
    ids = torch.tensor([[-1, 2, 0, -1, 2], [1, -1, -1, -1, -1]])
    out = module(rows, ids)
    for b in range(2):
        for t in range(5):
            node = int(ids[b, t])
            expected = rows[b, t] if node < 0 else features[node] @ module.projection.weight.T + module.projection.bias
            torch.testing.assert_close(out[b, t], expected)
    out.sum().backward()
    assert rows.grad is not None and torch.equal(rows.grad[..., 0], (ids < 0).float())
    assert module.projection.weight.grad is not None
    expected = features[ids[ids >= 0]].sum(0).expand(6, -1)
    torch.testing.assert_close(module.projection.weight.grad, expected)
    assert "features" not in module.state_dict() and module(rows.bfloat16(), ids).dtype == torch.bfloat16
    assert float(module.projection.weight.detach().std()) < 0.05


def test_bad_features() -> None:
    with pytest.raises(ArgumentError, match=r"features must be \[N, F\], got \[3\]"):
        NodeTokens(torch.zeros(3), 4)
