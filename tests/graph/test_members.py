"""Sums over members, in every copy of a graph."""

from __future__ import annotations

import pytest
import torch

from graphattn.graph import TokenGraph, patterns
from graphattn.graph.members import Members
from graphattn.testing import random_graph


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("ptr", [None, [0, 5, 5, 6, 9]], ids=["one", "ragged"])
def test_sum_max_and_spread(ptr: list[int] | None, copies: int) -> None:
    marks = None if ptr is None else torch.tensor(ptr)
    members = Members(marks, 9, copies, torch.device("cpu"))
    bounds = [0, 9] if ptr is None else ptr
    spans = [range(9 * c + a, 9 * c + b) for c in range(copies) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert members.count == len(spans)
    assert members.ptr.tolist() == [span.start for span in spans] + [9 * copies]
    assert members.member.tolist() == [m for m, span in enumerate(spans) for _ in span]
    rows = torch.randn(9 * copies, 2, dtype=torch.float64, requires_grad=True)
    total = torch.stack([rows[list(span)].sum(0) for span in spans])
    torch.testing.assert_close(members.sum(rows), total)
    largest = [rows[list(span)].amax(0) if len(span) else torch.full((2,), float("-inf")) for span in spans]
    torch.testing.assert_close(members.max(rows), torch.stack([x.double() for x in largest]).detach())
    torch.testing.assert_close(members.spread(total), total[members.member])
    assert members.spread(total > 0).dtype == torch.bool
    assert torch.autograd.gradcheck(lambda x: members.spread(members.sum(x)).square(), (rows,))


def test_of_a_graph() -> None:
    batch = random_graph(0, "batch", bipartite=True)
    assert Members.of_targets(batch).ptr.tolist() == batch.target_ptr.tolist()  # type: ignore[union-attr]
    assert Members.of_sources(batch).ptr.tolist() == batch.source_ptr.tolist()  # type: ignore[union-attr]
    heads = TokenGraph.stack([TokenGraph.per_head([batch, batch])] * 3)
    members = Members.of_sources(heads)
    assert members.count == 6 * batch.num_members and int(members.ptr[-1]) == 6 * batch.num_sources
    assert Members.of_targets(patterns.complete(4)).ptr.tolist() == [0, 4]
