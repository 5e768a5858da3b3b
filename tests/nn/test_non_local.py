"""The non-local block: dense softmax attention, the identity at first, any mechanism and graph in its place."""

from __future__ import annotations

import pytest
import torch

from graphattn import patterns
from graphattn.errors import ArgumentError
from graphattn.mechanisms import MECHANISMS, InfSA
from graphattn.nn import NonLocalBlock


def opened(block: NonLocalBlock) -> NonLocalBlock:
    """A block that is not the identity."""
    with torch.no_grad():
        for parameter in (block.norm or block.out).parameters():
            parameter.normal_()
    return block.double()


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("norm", ["batch", None])
def test_it_is_dense_softmax_attention(norm: str | None, heads: int) -> None:
    """Invariant 9."""
    block = opened(NonLocalBlock(8, heads=heads, norm=norm))
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    theta, phi, g = block.embed(x.flatten(2).mT).view(2, 15, 3, heads, 4 // heads).unbind(2)
    weights = torch.einsum("bthd,bshd->bhts", theta, phi).softmax(-1)
    step = block.out(torch.einsum("bhts,bshd->bthd", weights, g).flatten(2)).mT.view_as(x)
    if norm:
        mean, var = step.mean((0, 2, 3), keepdim=True), step.var((0, 2, 3), correction=0, keepdim=True)
        step = (step - mean) / (var + 1e-5).sqrt() * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    torch.testing.assert_close(block(x), x + step)


@pytest.mark.parametrize("mechanism", ["embedded_gaussian", *MECHANISMS.names()])
def test_any_mechanism_begins_as_the_identity_and_learns(mechanism: str) -> None:
    block = NonLocalBlock(8, heads=2, mechanism=mechanism, norm=None)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.out.weight.grad.any()
    torch.nn.init.normal_(block.out.weight)
    block.zero_grad()
    block(x).square().sum().backward()
    assert block.embed.weight.grad.isfinite().all() and block.embed.weight.grad.any()


def test_graph_and_mechanism_of_ones_own() -> None:
    block = opened(
        NonLocalBlock(
            8,
            4,
            mechanism=InfSA(4, 2, hops=2),
            graph=lambda h, w, device: patterns.grid(h, w, self_loops=True, device=device) | patterns.hubs(h * w, 1),
        )
    )
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    block.eval()(x)[0, :, 5, 5].sum().backward()
    assert x.grad[0, :, 5, 0].any()  # through the hub, in two hops
    scaled = NonLocalBlock(8, scale=None)
    assert scaled.scale is None and scaled(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"x must be \[B, 8, H, W\], got \[1, 4, 2, 2\]"):
        NonLocalBlock(8)(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ArgumentError, match="norm must be 'batch' or None, got 'layer'"):
        NonLocalBlock(8, norm="layer")
    with pytest.raises(ArgumentError, match="graph must be 'complete' or a function"):
        NonLocalBlock(8, graph="window")
    with pytest.raises(ArgumentError, match="unknown mechanism 'infsaa'; did you mean 'infsa'"):
        NonLocalBlock(8, mechanism="infsaa")
    with pytest.raises(ArgumentError, match="width must be a positive multiple of heads"):
        NonLocalBlock(8, 3, heads=2)
    with pytest.raises(ArgumentError, match="graph must have a token for each cell, 2 x 2, got one of 5"):
        NonLocalBlock(8, graph=lambda h, w, device: patterns.complete(5))(torch.zeros(1, 8, 2, 2))
    for mechanism in ("embedded_gaussian", InfSA(4, 2)):
        with pytest.raises(ArgumentError, match="mechanism_options go with a mechanism given by name only"):
            NonLocalBlock(8, mechanism=mechanism, mechanism_options={"hops": 2})
