"""Attention by hand, and what a result may differ from it, or a backend from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from graphattn.graph import TokenGraph

__all__ = ["assert_backends_equal", "assert_within_budget", "close", "eager_attention"]


def eager_attention(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    edge_bias: Tensor | None = None,
    edge_gate: Tensor | None = None,
    scale: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Dot-product attention as one would write it by hand: plain indexing, every step in the dtype of the inputs.

    Independent of the library's kernels, so it serves as an oracle in float64 and as the measure of what rounding
    does in a lower precision (see :func:`assert_within_budget`).

    Args:
        graph: A graph without leading dimensions.
        q: ``[T, H, D]``.
        k: ``[S, H, D]``.
        v: ``[S, H, D_v]``.
        edge_bias: ``[E, H]``.
        edge_gate: ``[E, H, D]``.
        scale: Default ``D ** -0.5``.
        clamp: Bound on the score.

    Returns:
        ``[T, H, D_v]``.
    """
    source, target = graph.edge_index
    product = q[target] * k[source]
    if edge_gate is not None:
        product = product * edge_gate
    score = product.sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if edge_bias is not None:
        score = score + edge_bias
    if clamp is not None:
        score = score.clamp(-clamp, clamp)
    index = target[:, None].expand_as(score)
    top = score.new_zeros(q.shape[:2]).scatter_reduce(0, index, score.detach(), "amax", include_self=False)
    weight = (score - top[target]).exp()
    total = torch.zeros_like(top).index_add(0, target, weight)
    weight = weight / total[target]
    return v.new_zeros(q.shape[0], *v.shape[1:]).index_add(0, target, weight.unsqueeze(-1) * v[source])


def assert_within_budget(
    actual: Tensor, eager: Tensor, exact: Tensor, *, factor: float = 2.0, what: str = "result"
) -> None:
    """Assert that a result in low precision is about as good as a plain run in the same precision.

    Its largest error against float64 may be ``factor`` times that of the plain run, plus a band of two roundings
    of the largest value (where the plain run happens to hit the exact value).

    Args:
        actual: What is tested, in low precision.
        eager: The plain run on the same inputs in the same precision (:func:`eager_attention`, say).
        exact: The plain run in float64 on the same inputs.
        factor: How many times the plain run's error is allowed.
        what: Named in the error text.

    Raises:
        AssertionError: If shapes or dtypes differ, values are not finite, or the error is larger.
    """
    assert actual.shape == exact.shape, f"{what}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, expected {eager.dtype}"
    assert bool(actual.isfinite().all()), f"{what}: not finite"
    if not exact.numel():
        return
    error = (actual.double() - exact).abs().max().item()
    plain = (eager.double() - exact).abs().max().item()
    band = 2 * torch.finfo(actual.dtype).eps * exact.abs().max().item()
    assert error <= factor * plain + band, (
        f"{what}: error {error:.3g} exceeds {factor:g} x {plain:.3g} (plain run) + {band:.3g} (rounding)"
    )


def assert_backends_equal(
    function: Callable[..., Any],
    *inputs: Tensor | None,
    parameters: Iterable[Tensor] = (),
    backend: str = "gather",
    tolerance: float = 1e-12,
) -> None:
    """Assert that a backend equals ``reference`` in value and in the gradient of every floating input.

    Args:
        function: Called as ``function(*inputs, backend=name)``; returns a tensor or a tuple with tensors.
        *inputs: float64 tensors (``None`` is passed on).
        parameters: More tensors whose gradients are compared, which the function already holds.
        backend: The backend to test.
        tolerance: Absolute and relative.

    Raises:
        AssertionError: If a value or a gradient differs.
    """
    held = list(parameters)
    results = [_value_and_gradients(function, inputs, held, name) for name in (backend, "reference")]
    for kind, got, expected in zip(("output", "gradient of input"), *results, strict=True):
        for n, (g, e) in enumerate(zip(got, expected, strict=True)):
            close(g, e, f"{kind} {n}", tolerance)


def _value_and_gradients(
    function: Callable[..., Any], inputs: tuple[Tensor | None, ...], held: list[Tensor], backend: str
) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [x if x is None else x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    result = function(*leaves, backend=backend)
    outputs = [y for y in (result if isinstance(result, tuple) else (result,)) if y is not None]
    random = torch.Generator().manual_seed(0)
    slopes = [torch.randn(y.shape, dtype=y.dtype, generator=random).to(y.device) for y in outputs]
    wanted = [x for x in leaves if x is not None and x.requires_grad] + held
    gradients = torch.autograd.grad(outputs, wanted, slopes, allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs], list(gradients)


def close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")
