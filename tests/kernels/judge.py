"""Whether ``csr_attention`` computes a random case right: plain code, and the error that is allowed.

Value and gradients are compared with plain code in float64 on the same (rounded) inputs. The yardstick is the same
plain code in the precision of the case: nobody tunes a tolerance. Plain code runs on the CPU whatever is tested.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from graphattn_kernels import csr_attention
from graphattn_kernels._random import dropout_scale
from tests.kernels.cases import Case, Problem, lay, make

__all__ = ["attend", "available_device", "check", "eager", "nan_filled_allocations", "results", "small_pieces"]

FACTOR = 2.0
"""An error may be this many times that of plain code in the same precision ..."""
ROUNDINGS = 2.0
"""... plus this many roundings of what was added up, for where the plain code happens to hit the exact value."""


def eager(problem: Problem, **tensors: Tensor) -> list[Tensor]:
    """As one would write it by hand: plain indexing, every step in the dtype of the inputs."""
    score, product = problem.scores(**tensors)
    v, target = tensors["v"], problem.target
    if problem.case.clamp:
        score = torch.where(problem.inside, score, score.detach().sign() * problem.options["clamp"])
    none = score.new_full((problem.structure.num_targets, problem.case.heads), float("-inf"))
    top = none.scatter_reduce(0, target[:, None].expand_as(score), score.detach(), "amax")
    top = top.masked_fill(top == float("-inf"), 0.0)
    weight = (score - top[target]).exp()
    total = problem.add(weight, target, len(top))
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    weight = weight / problem.take(total, target)
    if problem.case.dropout_p:
        weight = weight * _dropout(problem, weight.dtype)
    out = problem.add(weight.unsqueeze(-1) * problem.take(v, problem.source), target, len(top))
    lse = (top + total.log()).masked_fill(empty, float("-inf"))
    return [out, lse] + [product] * problem.options["need_product"]


def _dropout(problem: Problem, dtype: torch.dtype) -> Tensor:
    edges = torch.arange(problem.structure.num_edges)
    return dropout_scale(problem.options["dropout_seed"], edges, problem.case.heads, problem.case.dropout_p, dtype)


def attend(problem: Problem, *, backend: str, **tensors: Tensor) -> list[Tensor]:
    """What is tested."""
    return list(csr_attention(problem.structure, backend=backend, **tensors, **problem.options))


def results(problem: Problem, function: Callable[..., list[Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients by name, of :func:`eager`, say."""
    case = problem.case
    leaves = {name: x.to(dtype) for name, x in problem.tensors.items()}
    names = {"tokens": ("q", "k", "v"), "q": ("q",), "v": ("v",), "edges": ("edge_bias", "edge_gate", "att")}
    wanted = [name for name in leaves if case.needs == "all" or name in names[case.needs]] or ["k"]
    inputs = [leaves[name].requires_grad_() for name in wanted]
    outputs = function(problem, **{name: lay(x, case.layout) for name, x in leaves.items()})
    found = dict(zip(("out", "lse", "product"), (y.detach() for y in outputs), strict=False))
    # Plain code knows which input matters for which output, and has no gradient at all where none does.
    pairs = [(y, s) for y, s in zip(outputs, problem.slopes, strict=True) if s is not None and y.requires_grad]
    layout = case.layout if case.layout == "permuted" else "contiguous"
    slopes = [lay(s.to(y.dtype), layout) for y, s in pairs]
    grads = tuple(map(torch.zeros_like, inputs))
    if pairs:
        outputs = [y for y, _ in pairs]
        grads = torch.autograd.grad(outputs, inputs, slopes, allow_unused=True, materialize_grads=True)
    return found | {f"gradient of {name}": g for name, g in zip(wanted, grads, strict=True)}


def magnitudes(problem: Problem) -> dict[str, Tensor]:
    """For each result, the sum of the magnitudes that were added up for it, in float64.

    Rounding acts on these, so an error of a few roundings is a few eps of them, however much cancels: a target with one
    edge has weight 1 and a score gradient that is the difference of two equal numbers.
    """
    case, source, target, scale = problem.case, problem.source, problem.target, problem.scale
    laid = {name: lay(x, case.layout) for name, x in problem.tensors.items()}
    _, lse, *_ = eager(problem, **laid)
    score, product = problem.scores(**laid)
    if case.clamp:
        score = score.clamp(-problem.options["clamp"], problem.options["clamp"])
    lse = lse.masked_fill(lse == float("-inf"), 0.0)
    weight = (score - lse[target]).exp()
    kept = weight * _dropout(problem, weight.dtype) if case.dropout_p else weight

    size = {name: x.abs() for name, x in laid.items()}
    q, k, v = size["q"][target], size["k"][source], size["v"][source]
    gate = size.get("edge_gate", weight.new_tensor(0.0 if problem.additive else 1.0))
    att = size.get("att", weight.new_tensor(1.0))
    terms = (q + k + gate) * att if problem.additive else q * k * gate
    score_size = scale * terms.sum(-1)
    if "edge_bias" in size:
        score_size = score_size + size["edge_bias"].masked_fill(size["edge_bias"] == float("inf"), 0.0)

    def add(rows: Tensor, owner: Tensor, owners: int) -> Tensor:
        return rows.new_zeros(owners, *rows.shape[1:]).index_add(0, owner, rows)

    # A weight is off by the errors of its score and of the lse of its row.
    index = target[:, None].expand_as(score)
    row_size = 1 + torch.zeros_like(lse).scatter_reduce(0, index, score_size, "amax")
    relative = row_size[target]
    (targets, sources), slopes = (
        (len(laid["q"]), len(laid["k"])),
        [None if s is None else s.abs() for s in problem.slopes],
    )
    out = add((kept * relative).unsqueeze(-1) * v, target, targets)
    grad_out = torch.zeros_like(out) if slopes[0] is None else slopes[0]
    delta = (grad_out * add(kept.unsqueeze(-1) * v, target, targets)).sum(-1)
    delta = delta if slopes[1] is None else delta + slopes[1]
    slope = kept * relative * (grad_out[target] * v).sum(-1)
    slope = slope + weight * (relative * delta[target] + (grad_out * out).sum(-1)[target])
    term_slope = slope.unsqueeze(-1) * scale
    if case.score == "product" and slopes[2] is not None:
        term_slope = term_slope + slopes[2] * scale
    if problem.additive:
        to_q = to_k = to_gate = term_slope * att
    else:
        to_q, to_k, to_gate = term_slope * k * gate, term_slope * q * gate, term_slope * q * k
    found = {
        "q": add(to_q, target, targets),
        "k": add(to_k, source, sources),
        "v": add((kept * relative).unsqueeze(-1) * grad_out[target], source, sources),
        "edge_bias": slope,
        "edge_gate": to_gate,
        "att": (term_slope * (q + k + gate)).sum(0),
    }
    # One number for all heads gets the sum of their gradients.
    for name, x in problem.tensors.items():
        if laid[name].stride(1) == 0 or x.shape[1] < case.heads:
            found[name] = found[name].sum(1)
    found = {f"gradient of {name}": x for name, x in found.items()}
    return {"out": out, "lse": row_size + lse.abs(), "product": product.abs(), **found}


def _error(x: Tensor, exact: Tensor) -> float:
    same = (x == exact) | (exact == float("-inf"))
    difference = (x.double() - exact).abs().masked_fill(same, 0.0)
    return difference.max().item() if exact.numel() else 0.0


def scalar_error(problem: Problem) -> float:
    """Relative error of the numbers that reach the Triton kernels on a GPU as two float32, 48 bits: for float64."""
    options = problem.options
    numbers = [problem.scale, options.get("negative_slope"), options.get("clamp"), 1 / (1 - problem.case.dropout_p)]
    total = 0.0
    for x in numbers:
        if x is not None:
            high = torch.tensor(x, dtype=torch.float32).item()
            low = torch.tensor(x - high, dtype=torch.float32).item()
            total += abs(high + low - x) / abs(x)
    return total


def check(case: Case, *backends: str, device: str = "cpu") -> dict[str, float]:
    """Assert that every backend computes the case right on a device, in memory that starts as NaN.

    Returns:
        For each backend the largest error, as a share of what is allowed.

    Raises:
        AssertionError: If shape or dtype are wrong, a result is not finite, or an error is too large.
    """
    problem = make(case)
    # In float64 plain code is no better than what is tested, unless it adds up in groups.
    exact = results(problem._replace(groups=32), eager, torch.float64)
    plain, size = results(problem, eager, case.dtype), magnitudes(problem)
    usual = {name: _error(plain[name], exact[name]) for name in exact}
    worst = {}
    for backend in backends:
        with nan_filled_allocations(), small_pieces(backend, 4 * case.size) if case.split else nullcontext():
            actual = results(problem.to(device), functools.partial(attend, backend=backend), case.dtype)
        actual = {name: x.cpu() for name, x in actual.items()}
        assert actual.keys() == exact.keys(), f"{case} {backend}: {list(actual)}, expected {list(exact)}"
        rounded = case.dtype == torch.float64 and backend == "triton" and device == "cuda"
        extra = scalar_error(problem) if rounded else 0.0
        shares = []
        for name, x in actual.items():
            half = name == "lse" and case.dtype.itemsize == 2  # in float32: plain code in half precision is no measure
            dtype = torch.float32 if half else case.dtype
            what = f"{case} {backend}: {name}"
            relative = ROUNDINGS * torch.finfo(dtype).eps + extra
            shares.append(_share(what, x, exact[name], dtype, 0.0 if half else usual[name], relative, size[name]))
        worst[backend] = max(shares)
        unread = exact["lse"] == float("-inf")
        assert not actual["out"][unread].any(), f"{case} {backend}: a target that reads nothing must get 0"
    return worst


def _share(
    what: str, actual: Tensor, exact: Tensor, dtype: torch.dtype, usual: float, relative: float, size: Tensor
) -> float:
    assert actual.shape == exact.shape, f"{what}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert actual.dtype == dtype, f"{what}: dtype {actual.dtype}, expected {dtype}"
    # Only lse may be infinite, and only where the exact one is.
    assert bool((actual.isfinite() | ((actual == exact) & (exact == float("-inf")))).all()), f"{what}: not finite"
    assert torch.equal(actual == float("-inf"), exact == float("-inf")), f"{what}: -inf in the wrong rows"
    if not exact.numel():
        return 0.0
    error, band = _error(actual, exact), relative * size.max().item()
    allowed = FACTOR * usual + band
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {FACTOR:g} x {usual:.3g} (plain code) + {band:.3g}"
    return error / allowed if allowed else 0.0


def available_device(backend: str) -> str:
    """Where this machine runs a backend; skips the test where it cannot."""
    if backend in ("numba", "triton"):
        pytest.importorskip(backend)
    if backend == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs CUDA or TRITON_INTERPRET=1")
    return "cuda" if torch.cuda.is_available() and backend != "numba" else "cpu"


@contextmanager
def nan_filled_allocations() -> Iterator[None]:
    """``torch.empty`` gives NaN (integers: the largest), so reading memory that nobody wrote shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # the condition for filling
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextmanager
def small_pieces(backend: str, elements: int = 24) -> Iterator[None]:
    """Make a backend cut its work at a few edges: rows longer than that are hubs, even in a tiny graph.

    Args:
        backend: Its name.
        elements: Size of the buffers of ``"gather"``.
    """
    from graphattn_kernels import _schedule, _segment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_schedule, "chunk_size", lambda num_edges: 5)
        patch.setattr(_segment, "_CHUNK_ELEMENTS", {"cpu": elements, "cuda": elements})
        if backend == "numba":
            from graphattn_kernels import _numba

            patch.setattr(_numba, "_LONGEST", 3)
            patch.setattr(_numba, "_SERIAL", 0)
        yield
