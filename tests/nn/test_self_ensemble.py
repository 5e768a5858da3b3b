"""Self-ensembles: the identities of the specification, seeds, leaving the model as it was; EGT's block under SSA."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn import patterns
from graphattn.errors import ArgumentError
from graphattn.mechanisms import SSA, EGTAttention, MultiheadAttention, sampling
from graphattn.nn import EGTBlock, SelfEnsemble, self_ensemble


class Net(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = SSA(MultiheadAttention(16, 2), 0.25, minimum=2)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        graph = patterns.complete(x.shape[-2])
        return self.head(4 * self.attention(x, graph)[0]).mean(-2)


def passes(net: Net, x: Tensor, count: int, seed: int) -> Tensor:
    with torch.no_grad(), sampling(net, True, torch.Generator().manual_seed(seed)):
        return torch.stack([net(x) for _ in range(count)])


def test_probabilities_and_values_are_averaged() -> None:
    net, x = Net().eval(), torch.randn(5, 24, 16)
    each = passes(net, x, 6, seed=3)
    for average, wanted in (
        ("softmax", each.softmax(-1).mean(0).log()),
        ("sigmoid", each.sigmoid().mean(0).logit()),
        ("values", each.mean(0)),
    ):
        with torch.no_grad(), self_ensemble(net, 6, seed=3, average=average):
            torch.testing.assert_close(net(x), wanted, atol=2e-6, rtol=1e-5)


def test_cross_entropy_of_the_average_and_the_split_of_squared_errors() -> None:
    """Invariant 6: Jensen for any K, exactly; and mean squared error = squared error of the mean + variance."""
    net, x = Net().eval().double(), torch.randn(64, 24, 16).double()
    target = torch.randint(4, (64,))
    each = passes(net, x, 8, seed=1)
    single = torch.stack([F.cross_entropy(one, target, reduction="none") for one in each])
    for size in (2, 5, 8):
        for average in ("softmax", "values"):  # averaged scores obey it, too
            mean = SelfEnsemble(average)
            for one in each[:size]:
                mean.add(one)
            joint = F.cross_entropy(mean.result(), target, reduction="none")
            assert (joint <= single[:size].mean(0) + 1e-12).all()
    y = torch.randn(64, 4).double()
    spread = each.var(0, unbiased=False)
    torch.testing.assert_close((each - y).square().mean(0), (each.mean(0) - y).square() + spread)
    assert spread.min() > 0


def test_more_passes_are_better_in_expectation() -> None:
    """Invariant 7, over all sub-ensembles of 8 passes: the loss falls with K, towards a + b / K for squared errors."""
    from itertools import combinations

    net, x = Net(1).eval().double(), torch.randn(16, 24, 16).double()
    each, y = passes(net, x, 8, seed=2), torch.randn(16, 1).double()
    losses = []
    for size in range(1, 9):
        groups = [(each[list(group)].mean(0) - y).square().mean() for group in combinations(range(8), size)]
        losses.append(float(torch.stack(groups).mean()))
    assert all(b < a for a, b in zip(losses, losses[1:], strict=False))
    b = float(each.var(0).mean())  # of 8 passes without repetition: a + b (1 / K - 1 / 8)
    for size, loss in enumerate(losses, start=1):
        assert loss == pytest.approx(losses[-1] + b * (1 / size - 1 / 8), abs=1e-10)


def test_seeds_and_what_is_left_behind() -> None:
    net, x = Net().eval(), torch.randn(2, 24, 16)
    dense, found = net(x), []
    for seed in (1, 1, 2):
        with torch.no_grad(), self_ensemble(net, 3, seed=seed) as same:
            assert same is net
            found.append(net(x))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(net(x), dense) and not net._forward_hooks
    with pytest.raises(ArgumentError, match="passes must be 1 or more, got 0"), self_ensemble(net, 0):
        pass
    with pytest.raises(ArgumentError, match="average must be one of"), self_ensemble(net, 2, average="median"):
        pass
    with pytest.raises(ArgumentError, match="must hold an SSA"), self_ensemble(nn.Linear(2, 2), 2):
        pass
    with pytest.raises(ArgumentError, match="the average of no prediction"):
        SelfEnsemble().result()


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("scheme", ["uniform", "local"])
def test_egt_block_updates_edges_that_were_drawn_and_passes_the_others(scheme: str, leading: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block = EGTBlock(SSA(EGTAttention(8, 2, 3), 0.25, scheme, minimum=2), 8, 3).double()
    graph = patterns.complete(16)
    x = torch.randn(*leading, 16, 8, dtype=torch.float64, requires_grad=True)
    edge = torch.randn(*leading, 256, 3, dtype=torch.float64, requires_grad=True)
    with sampling(block, True, torch.Generator().manual_seed(1)) as (ssa,):
        out, new = block(x, graph, edge)
        ssa.generator.manual_seed(1)
        number = ssa.draw(graph, *leading, edges=True).edge
    inside = torch.zeros(edge.numel() // 3, dtype=torch.bool).index_fill(0, number, True)
    flat, rows = new.flatten(0, -2), edge.flatten(0, -2)
    assert torch.equal(flat[~inside], rows[~inside]) and (flat[inside] != rows[inside]).any(-1).all()
    assert out.shape == x.shape and inside.sum() == math.prod(leading) * 16 * 4
    gradient = torch.autograd.grad(new.square().sum(), edge)[0].flatten(0, -2)
    torch.testing.assert_close(gradient[~inside], 2 * rows[~inside])
    # All sources: the block on the whole graph.
    ssa.set_scheme(1.0)
    dense = block.train()(x, graph, edge), block.eval()(x, graph, edge)
    assert torch.equal(dense[0][0], dense[1][0]) and torch.equal(dense[0][1], dense[1][1])
    assert (dense[0][1] != edge).any(-1).all()
