"""Every operation against numbers worked by hand.

The graph has three targets and three sources, and target 1 reads nothing::

    edge      0       1       2       3
           2 -> 0  0 -> 0  1 -> 2  0 -> 2
"""

from __future__ import annotations

from math import inf, log

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn_kernels import csr_attention, sddmm, segment_softmax, segment_sum, spmm, spread

STRUCTURE = TokenGraph.from_edge_index(torch.tensor([[2, 0, 1, 0], [0, 0, 2, 2]]), 3).structure
BACKENDS = pytest.mark.parametrize("backend", ["reference", "gather"])
ATTENTION_BACKENDS = pytest.mark.parametrize("backend", ["reference", "gather", "numba"])


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def tokens(*values: float) -> Tensor:
    return column(*values).unsqueeze(2)


def equal(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected, dtype=actual.dtype), rtol=1e-14, atol=1e-14)


@BACKENDS
def test_segment_sum(backend: str) -> None:
    rows = column(1, 2, 3, 4)
    equal(segment_sum(STRUCTURE, rows, backend=backend), [3, 0, 7])
    equal(segment_sum(STRUCTURE.T, rows, backend=backend), [6, 3, 1])
    equal(segment_sum(STRUCTURE, rows[:, 0], backend=backend), [3, 0, 7])


@BACKENDS
def test_spread(backend: str) -> None:
    rows = column(10, 20, 30)
    equal(spread(STRUCTURE, rows, backend=backend), [10, 10, 30, 30])
    equal(spread(STRUCTURE.T, rows, backend=backend), [30, 10, 20, 10])


@BACKENDS
def test_sddmm(backend: str) -> None:
    a = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.float64).unsqueeze(1)
    b = torch.tensor([[1, 0], [0, 1], [2, 2]], dtype=torch.float64).unsqueeze(1)
    equal(sddmm(STRUCTURE, a, b, backend=backend), [6, 1, 6, 5])
    equal(sddmm(STRUCTURE, a, b, channels=True, backend=backend), [2, 4, 1, 0, 0, 6, 5, 0])


@BACKENDS
def test_spmm(backend: str) -> None:
    weights = column(1, 2, 3, 4)
    equal(spmm(STRUCTURE, weights, tokens(1, 10, 100), backend=backend), [102, 0, 34])
    equal(spmm(STRUCTURE.T, weights, tokens(1, 10, 100), backend=backend), [402, 300, 1])


@BACKENDS
def test_spmm_with_a_weight_for_each_channel(backend: str) -> None:
    weights = torch.tensor([[1, 10], [2, 20], [3, 30], [4, 40]], dtype=torch.float64).unsqueeze(1)
    values = torch.tensor([[1, 1], [10, 0], [100, 1]], dtype=torch.float64).unsqueeze(1)
    equal(spmm(STRUCTURE, weights, values, backend=backend), [102, 30, 0, 0, 34, 40])


@BACKENDS
def test_segment_softmax(backend: str) -> None:
    weights, lse = segment_softmax(STRUCTURE, column(0, log(3), 5, 5), backend=backend)
    equal(weights, [1 / 4, 3 / 4, 1 / 2, 1 / 2])
    equal(lse, [log(4), -inf, 5 + log(2)])


# Scores of the edges: 2 log 2, 0, log 3, 0; so the weights are 4/5, 1/5, 3/4, 1/4.
Q, K, V = tokens(log(2), 5, log(3)), tokens(0, 1, 2), tokens(4, 8, 20)


@ATTENTION_BACKENDS
def test_csr_attention(backend: str) -> None:
    out, lse = csr_attention(STRUCTURE, Q, K, V, scale=1.0, backend=backend)
    equal(out, [16.8, 0, 7])
    equal(lse, [log(5), -inf, log(4)])


@ATTENTION_BACKENDS
def test_csr_attention_scales_by_the_root_of_the_channels(backend: str) -> None:
    # Four equal channels add to four times the product, halved: twice the scores.
    q, k = Q.expand(-1, -1, 4), K.expand(-1, -1, 4)
    out, lse = csr_attention(STRUCTURE, q, k, V, backend=backend)
    equal(out, [(16 * 20 + 4) / 17, 0, (9 * 8 + 4) / 10])
    equal(lse, [log(17), -inf, log(10)])


@ATTENTION_BACKENDS
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"edge_bias": column(0, log(2), 0, 0)}, [(4 * 20 + 2 * 4) / 6, 0, 7], id="bias"),
        pytest.param({"edge_gate": tokens(0, 1, 1, 1)}, [12, 0, 7], id="gate"),
        pytest.param({"clamp": log(2)}, [(2 * 20 + 4) / 3, 0, (2 * 8 + 4) / 3], id="clamp"),
        # Clamped after the bias: 2 log 2 - log 2 and 0 - 3 log 2 become log 2 and -log 2.
        pytest.param(
            {"edge_bias": column(-log(2), -3 * log(2), 0, -9), "clamp": log(2)},
            [(4 * 20 + 4) / 5, 0, (4 * 8 + 4) / 5],
            id="bias-then-clamp",
        ),
    ],
)
def test_csr_attention_options(backend: str, options: dict, expected: list[float]) -> None:
    equal(csr_attention(STRUCTURE, Q, K, V, scale=1.0, backend=backend, **options)[0], expected)


@ATTENTION_BACKENDS
def test_csr_attention_gradient(backend: str) -> None:
    q, k, v, bias = (x.clone().requires_grad_() for x in (Q, K, V, column(0, 0, 0, 0)))
    out, _ = csr_attention(STRUCTURE, q, k, v, edge_bias=bias, scale=1.0, backend=backend)
    out.sum().backward()
    # The slope of a score is weight * (value - output).
    slope = [0.8 * (20 - 16.8), 0.2 * (4 - 16.8), 0.75 * (8 - 7), 0.25 * (4 - 7)]
    equal(bias.grad, slope)
    equal(v.grad, [0.2 + 0.25, 0.75, 0.8])
    equal(q.grad, [2 * slope[0], 0, slope[2]])
    equal(k.grad, [slope[1] * log(2) + slope[3] * log(3), slope[2] * log(3), slope[0] * log(2)])


@ATTENTION_BACKENDS
def test_csr_attention_gradient_through_the_lse(backend: str) -> None:
    bias = column(0, 0, 0, 0).requires_grad_()
    _, lse = csr_attention(STRUCTURE, Q, K, V, edge_bias=bias, scale=1.0, backend=backend)
    lse[[0, 2]].sum().backward()
    equal(bias.grad, [0.8, 0.2, 0.75, 0.25])  # the slope of a log-sum-exp is the weight


@ATTENTION_BACKENDS
def test_clamp_stops_the_gradient_outside(backend: str) -> None:
    bias = column(0, 0, 0, 0).requires_grad_()
    out, _ = csr_attention(STRUCTURE, Q, K, V, edge_bias=bias, scale=1.0, clamp=1.0, backend=backend)
    out.sum().backward()
    # |2 log 2| and |log 3| exceed 1; the scores 0 do not.
    assert bias.grad[0] == 0 and bias.grad[2] == 0
    assert bias.grad[1] != 0 and bias.grad[3] != 0
