"""The tile kernels against the float64 reference, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn_kernels.block_attention import block_attention
from graphattn_kernels.blocks import Blocks, flat, from_mask, to_mask

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or TRITON_INTERPRET=1", allow_module_level=True)

from graphattn_kernels.block_attention.impl.triton import launch, plan

pytestmark = pytest.mark.triton
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

NAMES = "out", "lse", "dq", "dk", "dv"
# Relative errors of one rounding of the result, times a small number for what the products round on the way.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def sizes_of(leading: str) -> tuple[int, int]:
    """Batch and heads: few, because the interpreter is slow."""
    return {"": (1, 2), "h": (1, 2), "b": (2, 1), "bh": (2, 2)}[leading]


def make_order(size: int, places: int, block: int, random: torch.Generator) -> Tensor:
    """Tokens in any order; nobody stands in the first block's gaps, so that it can have a full tile."""
    tokens = torch.randperm(size, generator=random)
    rest = torch.cat([tokens[block:], torch.full((places - size,), -1)])
    return torch.cat([tokens[:block], rest[torch.randperm(places - block, generator=random)]])


def make_blocks(
    leading: str, block_targets: int, block_sources: int, ordered: bool, ragged: bool, density: float = 0.2
) -> Blocks:
    """3 x 3 blocks with full, partial and missing tiles, a block row without any, and a target that reads nobody."""
    random = torch.Generator().manual_seed(1)
    rows, columns = 3 * block_targets, 3 * block_sources
    targets, sources = (rows - 21, columns - 3) if ragged else (rows, columns)
    batch, heads = sizes_of(leading)
    copies = (batch if "b" in leading else 1) * (heads if "h" in leading else 1)
    places = torch.rand(copies, rows, columns, generator=random) < density
    places[:, :block_targets, :block_sources] = True
    places[:, block_targets + 5] = False
    places[:, :block_targets, 2 * block_sources :] = False
    places[-1, 2 * block_targets :] = False
    target, source = torch.arange(rows), torch.arange(columns)
    if ordered:
        target = make_order(targets, rows, block_targets, random)
        source = make_order(sources, columns, block_sources, random)
    mask = torch.zeros(copies, rows + 1, columns + 1, dtype=torch.bool)  # nobody's edges go to the last row
    mask[:, target[:, None], source] = places
    orders = {"target": target.int().to(DEVICE), "source": source.int().to(DEVICE)} if ordered else {}
    mask = mask[:, :targets, :sources].to(DEVICE)
    return from_mask(mask, block_targets, block_sources, leading=leading, **orders)


def make_inputs(blocks: Blocks, width: int, v_width: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    batch, heads = sizes_of(blocks.leading)
    shapes = [(blocks.num_targets, width), (blocks.num_sources, width), (blocks.num_sources, v_width)]
    return [torch.randn(batch, n, heads, d, generator=random, dtype=torch.float64).to(DEVICE) for n, d in shapes]


def values_and_gradients(
    blocks: Blocks, inputs: list[Tensor], backend: str, dtype: torch.dtype, grad_dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    """Output, finite part of lse, and gradients through both, from gradients in ``grad_dtype``."""
    given = [x.to(dtype).requires_grad_() for x in inputs]
    out, lse = block_attention(blocks, *given, backend=backend, **options)
    random = torch.Generator().manual_seed(5)
    grad_out = torch.randn(out.shape, generator=random, dtype=torch.float64).to(DEVICE, grad_dtype)
    grad_lse = torch.randn(lse.shape, generator=random, dtype=torch.float64).to(DEVICE)
    finite = lse.masked_fill(lse == -math.inf, 0.0)
    loss = (out * grad_out.to(dtype)).double().sum() + (finite * grad_lse.to(lse.dtype)).double().sum()
    return [out.detach(), finite.detach(), *torch.autograd.grad(loss, given)]


def assert_like_reference(blocks: Blocks, inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    # The reference sees what the kernel sees: inputs rounded to the dtype.
    rounded = [x.to(dtype).double() for x in inputs]
    ours = values_and_gradients(blocks, rounded, "triton", dtype, dtype, **options)
    theirs = values_and_gradients(blocks, rounded, "reference", torch.float64, dtype, **options)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        error = (a.double() - b).norm() / b.norm().clamp(min=1.0)
        assert error < TOLERANCE[dtype], f"{name}: {error:.1e}"
    return ours


# Rows of a covering array: every pair of values of two of the first five columns stands in some row.
CASES = [
    # leading, ordered, ragged, clamp, tiles in a run, (block of targets, of sources), (D, D_v), dtype
    ("", False, False, None, 32, (32, 32), (16, 16), torch.float32),
    ("", True, True, 0.7, 2, (32, 64), (10, 20), torch.bfloat16),
    ("h", False, True, 0.7, 32, (64, 32), (24, 16), torch.float16),
    ("h", True, False, None, 2, (32, 32), (16, 8), torch.float32),
    ("b", False, True, None, 2, (32, 32), (16, 40), torch.bfloat16),
    ("b", True, False, 0.7, 32, (64, 32), (8, 16), torch.float32),
    ("bh", False, False, 0.7, 2, (32, 32), (32, 16), torch.float16),
    ("bh", True, True, None, 32, (32, 64), (16, 16), torch.float32),
]


def test_cases_cover_every_pair() -> None:
    columns = list(zip(*CASES, strict=True))[:5]
    for a, b in itertools.combinations(columns, 2):
        assert set(zip(a, b, strict=True)) == set(itertools.product(set(a), set(b)))


@pytest.mark.parametrize(
    ("leading", "ordered", "ragged", "clamp", "chunk", "sizes", "widths", "dtype"),
    CASES,
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_like_the_reference(
    leading: str,
    ordered: bool,
    ragged: bool,
    clamp: float | None,
    chunk: int,
    sizes: tuple[int, int],
    widths: tuple[int, int],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "_CHUNK", chunk)
    blocks = make_blocks(leading, *sizes, ordered, ragged)
    assert 0 < (blocks.by_target.slot < 0).sum() < blocks.by_target.num_tiles
    assert (blocks.by_target.ptr.diff() == 0).any() and (blocks.by_target.ptr.diff() > 1).any()
    assert_like_reference(blocks, make_inputs(blocks, *widths), dtype, clamp=clamp)


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (64, 32)])
def test_blocks_larger_than_a_step(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may take a strip of a block's rows, a step a strip of a tile's columns."""
    asked = []
    monkeypatch.setattr(launch, "configure", lambda *_: asked.append(1) or launch.Config(rows, columns, 4, 1))
    launch._plan_of.cache_clear()
    blocks = make_blocks("", 64, 64, ordered=True, ragged=True)
    assert_like_reference(blocks, make_inputs(blocks, 16, 16), torch.float32)
    assert asked
    launch._plan_of.cache_clear()


def test_more_parts_than_are_joined_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_CHUNK", 1)
    monkeypatch.setattr(launch, "_MERGE_PARTS", 2)
    blocks = make_blocks("", 32, 32, ordered=False, ragged=True)
    assert blocks.by_target.ptr.diff().max() > 2
    assert_like_reference(blocks, make_inputs(blocks, 16, 16), torch.float32)


@pytest.mark.parametrize("scale", [0.0, -0.4])
def test_any_scale(scale: float) -> None:
    blocks = make_blocks("", 32, 32, ordered=False, ragged=True)
    assert_like_reference(blocks, make_inputs(blocks, 16, 16), torch.float32, scale=scale)


@pytest.mark.filterwarnings("ignore:overflow")  # NumPy's, about pairs that the mask then drops
def test_scores_far_apart() -> None:
    """Scores of hundreds, most of them of pairs that are no edges, leave no trace where there is no edge."""
    blocks = make_blocks("", 32, 32, ordered=False, ragged=True, density=0.05)
    q, k, v = (x.float() for x in make_inputs(blocks, 16, 16))
    q[:, ::3] *= 10.0
    k[:, 1::4] *= 10.0
    exact = values_and_gradients(blocks, [q, k, v], "reference", torch.float64, torch.float32)
    errors = []
    for backend in ("triton", "reference"):
        results = values_and_gradients(blocks, [q, k, v], backend, torch.float32, torch.float32)
        errors.append([((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True)])
    # Weights of the backward pass have the rounding of a log-sum-exp of hundreds.
    last_bit = torch.finfo(torch.float32).eps * exact[1].abs().max().item()
    for name, budget, ours, eager in zip(NAMES, (0.0, 0.0, last_bit, last_bit, last_bit), *errors, strict=True):
        assert ours <= max(budget, 2.0 * eager), f"{name}: {ours:.1e}, eager {eager:.1e}"


def test_targets_without_a_weight_give_zero(nan_filled_allocations: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that read nobody, or all of whose scores are -inf, in memory that starts as NaN, cut rows included."""
    for chunk in (2, 32):
        monkeypatch.setattr(launch, "_CHUNK", chunk)
        blocks = make_blocks("", 32, 32, ordered=True, ragged=True)
        silent = ~to_mask(blocks)[0].any(-1)
        assert silent.sum() > 1
        out, lse, *grads = assert_like_reference(blocks, make_inputs(blocks, 16, 16), torch.float32)
        assert (out[:, silent] == 0).all() and (lse[:, silent] == 0).all()  # -inf, as assert_like_reference fills it
        assert (grads[0][:, silent] == 0).all()


def test_scores_of_minus_infinity() -> None:
    blocks = from_mask(torch.ones(1, 32, 32, dtype=torch.bool, device=DEVICE), 32, 32)
    q, k, v = (torch.ones(32, 1, 16, device=DEVICE) for _ in range(3))
    q[3] = -math.inf
    out, lse = block_attention(blocks, q, k, v, backend="triton")
    assert (out[3] == 0).all() and (lse[3] == -math.inf).all()
    assert (out[4] == 1).all()


def test_the_clamp_bound_passes_a_gradient() -> None:
    """Scores 1.9, 2.1 and -2.1 at a clamp of 2.1 in float32: the equal ones pass, the one beyond does not."""
    bound = torch.tensor(2.1).item()
    blocks = from_mask(torch.ones(1, 1, 4, dtype=torch.bool, device=DEVICE), 32, 32)
    q = torch.ones(1, 1, 1, device=DEVICE)
    k = torch.tensor([1.9, bound, -bound, 2.2], device=DEVICE).view(4, 1, 1).requires_grad_()
    out, _ = block_attention(blocks, q, k, torch.randn(4, 1, 3, device=DEVICE), clamp=bound, backend="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), k)
    assert (grad.flatten() != 0).tolist() == [True, True, True, False]


def test_nan_is_kept() -> None:
    """A score that is NaN makes its target NaN, clamped or not, and no other."""
    blocks = from_mask(torch.eye(32, dtype=torch.bool, device=DEVICE).unsqueeze(0), 32, 32)
    q, k, v = (torch.randn(32, 1, 16, device=DEVICE) for _ in range(3))
    q[3, 0, 2] = math.nan
    for clamp in (None, 1.0):
        out, lse = block_attention(blocks, q, k, v, clamp=clamp, backend="triton")
        assert out[3].isnan().all() and lse[3].isnan().all()
        assert out.isnan().sum() == 16


def test_strides_are_free() -> None:
    """A packed projection, heads before tokens, and an expanded value are read where they lie."""
    blocks = make_blocks("", 32, 32, ordered=False, ragged=True)
    n, m = blocks.num_targets, blocks.num_sources
    packed = torch.randn(1, max(n, m), 3, 2, 16, device=DEVICE)
    q, k = packed[:, :n, 0], packed[:, :m, 1]
    for v in (
        torch.randn(1, 2, m, 16, device=DEVICE).transpose(1, 2),
        torch.randn(1, m, 1, 16, device=DEVICE).expand(1, m, 2, 16),
        torch.randn(1, m, 2, 32, device=DEVICE)[..., ::2],
        torch.randn(1, m, 2, 19, device=DEVICE)[..., 3:],
    ):
        ours = values_and_gradients(blocks, [q, k, v], "triton", torch.float32, torch.float32)
        theirs = values_and_gradients(blocks, [q, k, v], "reference", torch.float64, torch.float64)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def test_without_a_batch() -> None:
    blocks = make_blocks("h", 32, 32, ordered=False, ragged=False)
    q, k, v = (x.float() for x in make_inputs(blocks, 16, 16))
    out, lse = block_attention(blocks, q, k, v, backend="triton")
    one, one_lse = block_attention(blocks, q[0], k[0], v[0], backend="triton")
    assert torch.equal(out[0], one) and torch.equal(lse[0], one_lse)


@pytest.mark.parametrize(("targets", "sources"), [(0, 3), (3, 0), (0, 0)])
def test_no_tokens(targets: int, sources: int) -> None:
    blocks = from_mask(torch.ones(1, targets, sources, dtype=torch.bool, device=DEVICE), 32, 32)
    x = [torch.randn(n, 2, 16, device=DEVICE, requires_grad=True) for n in (targets, sources, sources)]
    out, lse = block_attention(blocks, *x, backend="triton")
    assert out.shape == (targets, 2, 16) and (out == 0).all() and (lse == -math.inf).all()
    for x_, grad in zip(x, torch.autograd.grad(out.sum(), x), strict=True):
        assert grad.shape == x_.shape and (grad == 0).all()


def test_the_same_input_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_CHUNK", 2)
    blocks = make_blocks("", 32, 32, ordered=False, ragged=True)
    inputs = make_inputs(blocks, 16, 16)
    first, second = (values_and_gradients(blocks, inputs, "triton", torch.float16, torch.float16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_plans_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = plan.make_schedule
    monkeypatch.setattr(plan, "make_schedule", lambda *a: made.append(a) or make(*a))
    blocks = from_mask(torch.ones(1, 40, 40, dtype=torch.bool, device=DEVICE), 32, 32)
    for _ in range(2):
        values_and_gradients(blocks, make_inputs(blocks, 16, 16), "triton", torch.float32, torch.float32)
    assert len(made) == 2  # one for each side


def test_a_plan_shrinks_to_what_it_needs() -> None:
    view = make_blocks("", 32, 32, ordered=False, ragged=False).by_target
    bound = plan.make_schedule(view.ptr, view.num_tiles, 2)
    plan.plan_of(view, 2)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    used = plan.plan_of(view, 2)
    lengths = view.ptr.diff()
    assert bound.hubs is not None and bound.num_parts > used.num_parts
    assert used.num_parts == sum(math.ceil(n / 2) for n in lengths.tolist() if n > 2)
    assert used.row.shape[0] == used.num_parts + view.num_rows
    runs = [(b, e) for b, e in zip(used.begin.tolist(), used.end.tolist(), strict=True) if e > b]
    assert sorted(t for b, e in runs for t in range(b, e)) == list(range(view.num_tiles))
    assert plan.plan_of(view, 32).hubs is None


@pytest.mark.parametrize("leading", ["", "bh"])
def test_opcheck(leading: str) -> None:
    """Schema, autograd registration, fake tensors and AOT dispatch with dynamic shapes."""
    batch, heads = sizes_of(leading)
    mask = torch.rand(batch * heads if leading else 1, 20, 11, device=DEVICE) < 0.5
    blocks = from_mask(mask, 32, 32, target=torch.randperm(20, device=DEVICE).int(), leading=leading)
    inputs = [x.float().requires_grad_() for x in make_inputs(blocks, 16, 8)]
    torch.library.opcheck(torch.ops.graphattn.block_attention.default, (*flat(blocks), *inputs, 0.3, None))


def test_compile() -> None:
    """One graph, with gradients, equal to the eager run."""
    blocks = from_mask(torch.rand(1, 20, 11, device=DEVICE) < 0.5, 32, 32)

    def f(blocks: Blocks, *inputs: Tensor) -> Tensor:
        out, lse = block_attention(blocks, *inputs, backend="triton")
        return out.square().sum() + lse.masked_fill(lse == -math.inf, 0.0).sum()

    inputs = [torch.randn(1, n, 2, 16, device=DEVICE, requires_grad=True) for n in (20, 11, 11)]
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(blocks, *inputs), inputs), torch.autograd.grad(f(blocks, *inputs), inputs)
    )


def test_no_second_derivative() -> None:
    blocks = from_mask(torch.ones(1, 2, 2, dtype=torch.bool, device=DEVICE), 32, 32)
    x = torch.randn(2, 1, 16, device=DEVICE, requires_grad=True)
    out, _ = block_attention(blocks, x, x, x, backend="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        grad.sum().backward()
