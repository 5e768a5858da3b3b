"""ReLU attention with a Frobenius norm: the definition by hand, every backend against the float64 reference."""

from __future__ import annotations

import importlib
import itertools
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn_kernels import relu_attention
from graphattn_kernels._members import select
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError
from graphattn_kernels.relu_attention.impl import gather

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [pytest.param("reference"), pytest.param("gather"), pytest.param("triton", marks=needs_triton)]

NAMES = "out", "norm", "dq", "dk", "dv"
# Relative errors of one rounding of the result, times a small number for what the products round on the way.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def kernels() -> Any:
    return importlib.import_module("graphattn_kernels.relu_attention.impl.triton.launch")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs, and several steps of each, on few tokens."""
    monkeypatch.setattr(gather, "_BLOCK_ELEMENTS", {"cpu": 500, "cuda": 500})
    if TRITON:
        launch = kernels()
        sizes = {launch.column_kernel: launch.Config(16, 32, 4, 1)}  # rows, columns, warps, stages
        monkeypatch.setattr(launch, "configure", lambda kernel, *_: sizes.get(kernel, launch.Config(32, 16, 4, 1)))
        monkeypatch.setattr(launch, "_ALONG_ROWS", 16)


def make(kind: str, targets: int = 40, sources: int = 27, heads: int = 2, widths: tuple[int, int] = (20, 10)) -> Any:
    """Inputs in float64 and where the members are: with an empty member, and one of nothing but padding."""
    random = torch.Generator().manual_seed(3)
    batch = {"ragged": (), "one": ()}.get(kind, (2,))
    heads = 1 if kind == "padded" else heads
    shapes = (targets, widths[0]), (sources, widths[0]), (sources, widths[1])
    inputs = [torch.randn(*batch, n, heads, d, generator=random, dtype=torch.float64).to(DEVICE) for n, d in shapes]
    members = {
        "ragged": {"target_ptr": [0, 5, 5, 21, targets], "source_ptr": [0, 3, 14, 14, sources]},
        "padded": {"target_lengths": [targets, 19], "source_lengths": [sources - 8, 0]},
    }.get(kind, {})
    return inputs, {name: torch.tensor(x, device=DEVICE) for name, x in members.items()}


def values_and_gradients(inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    given = [x.to(dtype).requires_grad_() for x in inputs]
    out, norm = relu_attention(*given, **options)
    random = torch.Generator().manual_seed(5)
    slopes = [torch.randn(y.shape, generator=random, dtype=torch.float64).to(DEVICE).to(y.dtype) for y in (out, norm)]
    grads = torch.autograd.grad((out, norm), given, slopes)
    return [out.detach(), norm.detach(), *grads]


def assert_like_reference(
    inputs: list[Tensor], dtype: torch.dtype, backend: str, kinks: bool = False, **options: Any
) -> list[Tensor]:
    """``kinks``: so many pairs that the scores of some are 0 but for rounding, where a gradient may be either of two:
    leave out the hundredth of the rows whose gradients of q and k differ most."""
    rounded = [x.to(dtype).double() for x in inputs]  # the reference sees what the kernel sees
    ours = values_and_gradients(rounded, dtype, backend=backend, **options)
    theirs = values_and_gradients(rounded, torch.float64, backend="reference", **options)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        differences = (a.double() - b).norm(dim=-1).flatten()
        if kinks and name in ("dq", "dk"):
            differences = differences.sort().values[: -(-len(differences) * 99 // 100)]
        error = differences.norm() / b.norm().clamp(min=1e-3)
        assert error < TOLERANCE[dtype], f"{name}: {error:.1e}"
    return ours


# --- the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_three_tokens_by_hand(backend: str) -> None:
    """Weights [[3, 0], [0, 4]] (one score is -1, one 0): norm 5."""
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=DEVICE).view(2, 1, 2)
    k = torch.tensor([[3.0, 0.0], [-1.0, 4.0]], device=DEVICE).view(2, 1, 2)
    v = torch.tensor([10.0, 20.0], device=DEVICE).view(2, 1, 1)
    out, norm = relu_attention(q, k, v, scale=1.0, eps=1e-9, backend=backend)
    torch.testing.assert_close(out.flatten().tolist(), [6.0, 16.0])
    torch.testing.assert_close(norm.tolist(), [5.0])


def test_reference_is_a_product_with_a_normalised_matrix() -> None:
    (q, k, v), _ = make("batch", 9, 7)
    scores = torch.stack([torch.stack([q[b, :, h] @ k[b, :, h].T for h in range(2)]) for b in range(2)]) * 20**-0.5
    weights = scores.clamp(min=0.0)
    norms = torch.linalg.matrix_norm(weights)
    expected = (weights / (norms + 1e-6)[..., None, None]) @ v.transpose(1, 2)
    out, norm = relu_attention(q, k, v, backend="reference")
    torch.testing.assert_close(out.transpose(1, 2), expected)
    torch.testing.assert_close(norm, norms)


@pytest.mark.parametrize("causal", [False, True])
def test_reference_differentiates_twice(causal: bool) -> None:
    inputs, _ = make("one", 4, 3, 1, (2, 2))
    given = [x.requires_grad_() for x in inputs]

    def f(*x: Tensor) -> Any:
        return relu_attention(*x, causal=causal, backend="reference")

    assert torch.autograd.gradcheck(f, given)
    assert torch.autograd.gradgradcheck(f, given)


@pytest.mark.parametrize("kind", ["one", "batch", "padded", "ragged"])
@pytest.mark.parametrize("causal", [False, True])
def test_gather_is_the_reference(kind: str, causal: bool, small_tiles: None) -> None:
    inputs, members = make(kind)
    assert_like_reference(inputs, torch.float64, "gather", causal=causal, **members)


def test_members_are_graphs_of_their_own() -> None:
    """Padding and members side by side equal each member alone; norms do not mix."""
    inputs, ptr = make("ragged")
    out, norm = relu_attention(*inputs, **ptr, backend="reference")
    bounds = zip(*(itertools.pairwise(x.tolist()) for x in ptr.values()), strict=True)
    for g, ((t, t_end), (s, s_end)) in enumerate(bounds):
        q, k, v = inputs[0][t:t_end], inputs[1][s:s_end], inputs[2][s:s_end]
        alone, alone_norm = relu_attention(q, k, v, backend="reference")
        torch.testing.assert_close((out[t:t_end], norm[g]), (alone, alone_norm))
    (q, k, v), lengths = make("padded")
    out, norm = relu_attention(q, k, v, **lengths, backend="reference")
    alone, alone_norm = relu_attention(q[0], k[0, :19], v[0, :19], backend="reference")
    torch.testing.assert_close((out[0], norm[0]), (alone, alone_norm))
    assert (out[1] == 0).all() and (norm[1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_is_a_row_of_zeros(backend: str) -> None:
    (q, k, v), _ = make("one", 12, 9)
    q, k, v = q.float(), k.float(), v.float()
    reads, read = torch.rand(12, device=DEVICE) < 0.6, torch.rand(9, device=DEVICE) < 0.6
    zeroed = q * reads[:, None, None], k * read[:, None, None], v
    out, norm = relu_attention(*zeroed, backend=backend)
    less, less_norm = relu_attention(q[reads], k[read], v[read], backend="reference")
    torch.testing.assert_close((out[reads], norm), (less, less_norm))
    assert (out[~reads] == 0).all()


# --- the kernels ----------------------------------------------------------------------------------------------

# Rows of a covering array: every pair of values of two of the first four columns stands in some row.
CASES = [
    # members, causal, scale, dtype, (D, D_v)
    ("batch", False, None, torch.float32, (16, 16)),
    ("batch", True, -0.3, torch.bfloat16, (20, 10)),
    ("batch", True, None, torch.float16, (16, 32)),
    ("padded", True, None, torch.float32, (20, 10)),
    ("padded", False, None, torch.bfloat16, (16, 16)),
    ("padded", False, -0.3, torch.float16, (8, 20)),
    ("ragged", False, -0.3, torch.float32, (10, 16)),
    ("ragged", True, None, torch.bfloat16, (32, 16)),
    ("ragged", False, None, torch.float16, (20, 10)),
]


def test_cases_cover_every_pair() -> None:
    columns = list(zip(*CASES, strict=True))[:4]
    for a, b in itertools.combinations(columns, 2):
        assert set(zip(a, b, strict=True)) == set(itertools.product(set(a), set(b)))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
class TestTriton:
    @pytest.mark.parametrize(
        ("kind", "causal", "scale", "dtype", "widths"), CASES, ids=lambda x: str(x).removeprefix("torch.")
    )
    def test_like_the_reference(
        self, kind: str, causal: bool, scale: float | None, dtype: torch.dtype, widths: Any, small_tiles: None
    ) -> None:
        inputs, members = make(kind, widths=widths)
        assert_like_reference(inputs, dtype, "triton", causal=causal, scale=scale, **members)

    @pytest.mark.parametrize(
        ("targets", "sources", "causal", "dtype"),
        [
            (1, 1, False, torch.float32),
            (1, 33, True, torch.float32),
            (130, 65, True, torch.float32),
            (130, 65, False, torch.bfloat16),
            (64, 64, True, torch.bfloat16),
        ],
    )
    def test_its_own_tiles(self, targets: int, sources: int, causal: bool, dtype: torch.dtype) -> None:
        """One token, whole tiles, and a token more than tiles hold, with the sizes of the table."""
        inputs, members = make("one", targets, sources, 1, (16, 16))
        inputs = [x.abs() for x in inputs]  # something is read even where there is one token
        assert_like_reference(inputs, dtype, "triton", causal=causal, **members)

    def test_padding_is_never_read(self, nan_filled_allocations: None, small_tiles: None) -> None:
        """NaN in padding, and memory that starts as NaN."""
        inputs, lengths = make("padded")
        expected = values_and_gradients(inputs, torch.float32, backend="triton", **lengths)
        q, k, v = (x.clone() for x in inputs)
        q[1, 19:], k[0, 19:], v[0, 19:], k[1], v[1] = (math.nan,) * 5
        got = values_and_gradients([q, k, v], torch.float32, backend="triton", **lengths)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert (got[0][1] == 0).all() and (got[3][0, 19:] == 0).all() and (got[2][1, 19:] == 0).all()

    def test_strides_are_free(self) -> None:
        """A packed projection, heads before tokens, and an expanded value are read where they lie."""
        packed = torch.randn(1, 20, 3, 2, 16, device=DEVICE)
        q, k = packed[:, :, 0], packed[:, :17, 1]
        for v in (
            torch.randn(1, 2, 17, 16, device=DEVICE).transpose(1, 2),
            torch.randn(1, 17, 1, 16, device=DEVICE).expand(1, 17, 2, 16),
            torch.randn(1, 17, 2, 32, device=DEVICE)[..., ::2],
            torch.randn(1, 17, 2, 19, device=DEVICE)[..., 3:],
        ):
            assert_like_reference([q, k, v], torch.float32, "triton")

    def test_the_same_input_gives_the_same_bits(self, small_tiles: None) -> None:
        inputs, members = make("ragged")
        first, second = (values_and_gradients(inputs, torch.float16, backend="triton", **members) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_small_gradients_in_half_precision(self) -> None:
        """Gradients of weights are of the size 1e-7 here, which float16 cannot tell from its neighbours; those of q are
        1e-5 and more. The rest of the error is that of a rounded gradient of the output."""
        q, k, v = (torch.rand(64, 1, 16, device=DEVICE).half() + 0.5 for _ in range(3))
        q, k = q * 2.0, k * 200.0
        grads = []
        for backend, dtype in (("triton", torch.float16), ("reference", torch.float64)):
            leaf = q.to(dtype).requires_grad_()
            out, _ = relu_attention(leaf, k.to(dtype), v.to(dtype), scale=1.0, backend=backend)
            grads.append(torch.autograd.grad((out.double() * 0.1).cos().sum(), leaf)[0].double())
        assert grads[1].abs().mean() < 1e-3
        assert (grads[0] - grads[1]).norm() / grads[1].norm() < 5e-2

    @pytest.mark.parametrize("scale", [0.0, 1.0, -0.125, 0.3, 3e-9, -1e9])
    def test_scale_as_a_product(self, scale: float) -> None:
        factor, rest = kernels().Scale.of(scale)
        assert factor * rest == scale and rest > 0
        assert factor == 0.0 or (math.frexp(factor)[0] in (0.5, -0.5) and 2**-8 <= abs(factor) <= 2**8)

    def test_sizes_fit_every_width(self) -> None:
        launch = kernels()
        for kernel in (launch.attend_kernel, launch.row_kernel, launch.column_kernel):
            for dtype in (torch.float32, torch.bfloat16):
                rows = [launch.configure(kernel, width, dtype).rows for width in (16, 32, 64, 128, 256)]
                assert rows == sorted(rows, reverse=True) and rows[-1] >= 16

    def test_opcheck(self) -> None:
        """Schema, autograd registration, fake tensors and AOT dispatch with dynamic shapes."""
        x = [torch.randn(2, 5, 1, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
        lengths = torch.tensor([5, 2], device=DEVICE)
        op = torch.ops.graphattn.relu_attention.default
        torch.library.opcheck(op, (*x, lengths, lengths, None, None, 0.3, True, 1e-6, "triton"))


# --- properties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_scores_give_exactly_zero(backend: str) -> None:
    q = torch.rand(2, 40, 2, 16, device=DEVICE, requires_grad=True)
    k = (-torch.rand(2, 33, 2, 16, device=DEVICE)).requires_grad_()
    v = torch.randn(2, 33, 2, 16, device=DEVICE, requires_grad=True)
    out, norm = relu_attention(q, k, v, backend=backend)
    assert (out == 0).all() and (norm == 0).all()
    for grad in torch.autograd.grad((out.sum(), norm.sum()), (q, k, v)):
        assert (grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_sign_of_the_scale_matters(backend: str) -> None:
    q, k, v = (torch.randn(1, 20, 1, 16, device=DEVICE) for _ in range(3))
    out, norm = relu_attention(q, k, v, scale=0.1, backend=backend)
    other, other_norm = relu_attention(q, k, v, scale=7.0, backend=backend)
    torch.testing.assert_close((other, other_norm), (out, norm * 70.0), rtol=1e-4, atol=1e-5)
    opposite, _ = relu_attention(q, k, v, scale=-7.0, backend=backend)
    torch.testing.assert_close(opposite, relu_attention(-q, k, v, backend=backend)[0], rtol=1e-4, atol=1e-5)
    none, none_norm = relu_attention(q, k, v, scale=0.0, backend=backend)
    assert (none == 0).all() and (none_norm == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_kept(backend: str) -> None:
    q, k, v = (torch.randn(2, 20, 1, 16, device=DEVICE) for _ in range(3))
    k[0, 3, 0, 2] = math.nan
    out, norm = relu_attention(q, k, v, backend=backend)
    assert out[0].isnan().all() and norm[0].isnan().all()
    assert out[1].isfinite().all() and norm[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("targets", "sources"), [(0, 3), (3, 0), (0, 0)])
def test_no_tokens(targets: int, sources: int, backend: str) -> None:
    x = [torch.randn(n, 2, 16, device=DEVICE, requires_grad=True) for n in (targets, sources, sources)]
    out, norm = relu_attention(*x, backend=backend)
    assert out.shape == (targets, 2, 16) and (out == 0).all() and (norm == 0).all()
    for y, grad in zip(x, torch.autograd.grad(out.sum(), x), strict=True):
        assert grad.shape == y.shape and (grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_of_values_without_channels(backend: str) -> None:
    q, k = (torch.ones(n, 1, 4, device=DEVICE, requires_grad=True) for n in (2, 8))
    out, norm = relu_attention(q, k, k.new_ones(8, 1, 0), scale=0.5, backend=backend)
    assert out.shape == (2, 1, 0) and norm.item() == 8.0  # 16 scores of 2
    assert all((grad != 0).all() for grad in torch.autograd.grad(norm.sum(), (q, k)))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_one_gradient_of_two(backend: str) -> None:
    """A loss that sees one result only, and inputs of which one needs a gradient."""
    (q, k, v), _ = make("one", 9, 7, 1)
    for pick in (0, 1):
        found = []
        for which in (backend, "reference"):
            x = q.float().requires_grad_()
            result = relu_attention(x, k.float(), v.float(), backend=which)[pick]
            found.append(torch.autograd.grad(result.square().sum(), x)[0])
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_compile(backend: str) -> None:
    """One graph, with gradients, equal to the eager run."""
    torch._dynamo.reset()

    def f(*inputs: Tensor) -> Tensor:
        out, norm = relu_attention(*inputs, causal=True, backend=backend)
        return out.square().sum() + norm.sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (11, 20) if backend == "gather" else (11,):
        x = [torch.randn(1, n, 1, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
        torch.testing.assert_close(torch.autograd.grad(compiled(*x), x), torch.autograd.grad(f(*x), x))


@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck_of_gather(ragged: bool) -> None:
    batch = 1 if ragged else 2
    x = [torch.randn(batch, n, 2, d, requires_grad=True, dtype=torch.float64) for n, d in ((6, 3), (5, 3), (5, 4))]
    members: tuple[Tensor | None, ...] = (torch.tensor([6, 2]), torch.tensor([0, 5]), None, None)
    if ragged:
        members = None, None, torch.tensor([0, 2, 6]), torch.tensor([0, 5, 5])
    torch.library.opcheck(torch.ops.graphattn.relu_attention.default, (*x, *members, 0.3, False, 1e-6, "gather"))


def test_autocast() -> None:
    q, k, v = (torch.randn(5, 1, 4, device=DEVICE) for _ in range(3))
    with torch.autocast(DEVICE, torch.bfloat16):
        out, norm = relu_attention(q, k.bfloat16(), v)
    assert out.dtype == torch.bfloat16 and norm.dtype == torch.float32


def test_no_second_derivative() -> None:
    x = torch.randn(3, 1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(relu_attention(x, x, x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        grad.sum().backward()


# --- bad input ------------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([3, 2])


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (ArgumentTypeError, "v must be a tensor, got list", {"v": [1.0]}),
        (ArgumentTypeError, "q must be a floating tensor", {"q": torch.ones(2, 5, 3, 4).long()}),
        (ArgumentTypeError, "k must have the dtype and device of q", {"k": torch.ones(2, 6, 3, 4).double()}),
        (ArgumentError, r"q must be \[B, T, H, D\] or", {"q": torch.ones(2, 5)}),
        (ArgumentError, "k must have the batch and heads of q", {"k": torch.ones(2, 6, 2, 4)}),
        (ArgumentError, "v must have the batch and heads of q", {"v": torch.ones(3, 6, 3, 4)}),
        (ArgumentError, "k must have the channels of q, 4, got 5", {"k": torch.ones(2, 6, 3, 5)}),
        (ArgumentError, "v must have one row for each source of k, 6, got 5", {"v": torch.ones(2, 5, 3, 4)}),
        (ArgumentError, "eps must be positive, got 0", {"eps": 0.0}),
        (ArgumentError, "backend must be", {"backend": "best"}),
        (BackendError, "'numba' cannot run: this operation has no such", {"backend": "numba"}),
        (ArgumentError, "target_lengths must have one length for each batch", {"target_lengths": torch.ones(3).int()}),
        (ArgumentTypeError, "source_lengths must be an int32 or int64", {"source_lengths": torch.ones(2)}),
        (ArgumentTypeError, "source_lengths must be an int32 .* got list", {"source_lengths": [1, 2]}),
        (ArgumentError, "target_ptr and source_ptr come together", {"target_ptr": LENGTHS}),
        (ArgumentError, "not both", {"target_ptr": LENGTHS, "source_ptr": LENGTHS, "target_lengths": LENGTHS}),
        (ArgumentError, r"q must be \[T, H, D\] where", {"target_ptr": LENGTHS, "source_ptr": LENGTHS}),
    ],
)
def test_bad_input(error: type[Exception], match: str, given: dict[str, object]) -> None:
    good = {"q": torch.ones(2, 5, 3, 4), "k": torch.ones(2, 6, 3, 4), "v": torch.ones(2, 6, 3, 4)}
    with pytest.raises(error, match=match):
        relu_attention(**{**good, **given})  # type: ignore[arg-type]


def test_pointers_of_different_length() -> None:
    x = torch.ones(5, 1, 4)
    with pytest.raises(ArgumentError, match="same length"):
        relu_attention(x, x, x, target_ptr=torch.tensor([0, 5]), source_ptr=torch.tensor([0, 2, 5]))


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 1, 4)
    assert select("auto", x, x) == "gather"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    assert select("triton", x, x) == "triton"
    with pytest.raises(BackendError, match="got torch.float64; use 'gather'"):
        select("triton", x.double(), x.double())
    with pytest.raises(BackendError, match="at most 256 channels a head, got 4 and 300"):
        select("triton", x, torch.randn(3, 1, 300))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match="CUDA"):
        select("triton", x, x)


# --- on a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
class TestGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("width", [16, 40, 64, 80, 128, 256])
    def test_real_sizes(self, width: int, causal: bool, dtype: torch.dtype) -> None:
        for kind, targets, sources in (("batch", 1000, 777), ("padded", 515, 640), ("ragged", 2000, 1500)):
            inputs, members = make(kind, targets, sources, 3, (width, width))
            assert_like_reference(inputs, dtype, "triton", kinks=True, causal=causal, **members)

    def test_long(self) -> None:
        """16k tokens, 8 heads of 64: against blocks of rows in float32."""
        x = [torch.randn(1, 16_384, 8, 64, device="cuda").bfloat16() for _ in range(3)]
        ours = values_and_gradients([y.double() for y in x], torch.bfloat16, backend="triton")
        theirs = values_and_gradients([y.double() for y in x], torch.float32, backend="gather")
        for name, a, b in zip(NAMES, ours, theirs, strict=True):
            assert (a.double() - b.double()).norm() / b.double().norm() < 1.5e-2, name

    def test_a_hundred_repeats_give_the_same_bits(self) -> None:
        inputs, members = make("ragged", 3000, 2500, 4, (64, 64))
        first = values_and_gradients(inputs, torch.bfloat16, **members)
        for _ in range(100):
            again = values_and_gradients(inputs, torch.bfloat16, **members)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("kind", ["batch", "padded", "ragged"])
    def test_a_cuda_graph_replays_on_new_inputs(self, kind: str) -> None:
        """And nothing waits for the device, which capture would not allow."""
        inputs, members = make(kind, 600, 500, 4, (64, 64))
        static = [x.bfloat16().requires_grad_() for x in inputs]

        def step() -> list[Tensor]:
            out, norm = relu_attention(*static, causal=True, **members)
            return [out.detach(), norm.detach(), *torch.autograd.grad((out.sum(), norm.sum()), static)]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            for x in static:
                x.copy_(torch.randn_like(x))
        graph.replay()
        replayed = [x.clone() for x in captured]
        assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))
