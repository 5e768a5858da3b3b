"""Attention of rank one: the definition by hand, every backend against the float64 reference."""

from __future__ import annotations

import importlib
import itertools
import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn_kernels import rank_one_attention, relu_attention
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [pytest.param("reference"), pytest.param("gather"), pytest.param("triton", marks=needs_triton)]
NAMES = "out", "dq", "dk", "dv"
# The kernels compute in float32 whatever the dtype, and round once.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def kernels() -> Any:
    return importlib.import_module("graphattn_kernels.rank_one_attention.impl.triton.launch")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several programs for a member, several steps of each, and more sums than are added at once."""
    if not TRITON:
        yield
        return
    plans = kernels()._plan_of
    for name, value in {"_TILE": 256, "_PROGRAMS": 3, "_JOINED": 32}.items():
        monkeypatch.setattr(kernels(), name, value)
    plans.cache_clear()
    yield
    plans.cache_clear()


def make(kind: str, targets: int = 40, sources: int = 27, heads: int = 2, widths: tuple[int, int] = (12, 10)) -> Any:
    """Inputs in float64 and where the members are: with an empty member, and one of nothing but padding."""
    random = torch.Generator().manual_seed(4)
    batch = {"ragged": (), "one": ()}.get(kind, (2,))
    shapes = (targets, widths[0]), (sources, widths[0]), (sources, widths[1])
    inputs = [torch.randn(*batch, n, heads, d, generator=random, dtype=torch.float64).to(DEVICE) for n, d in shapes]
    inputs[1] += 0.3
    members = {
        "ragged": {"target_ptr": [0, 5, 5, 21, targets], "source_ptr": [0, 3, 14, 14, sources]},
        "padded": {"target_lengths": [targets, 19], "source_lengths": [sources - 8, 0]},
    }.get(kind, {})
    return inputs, {name: torch.tensor(x, device=DEVICE) for name, x in members.items()}


def values_and_gradients(inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    given = [x.to(dtype).requires_grad_() for x in inputs]
    out = rank_one_attention(*given, **options)
    random = torch.Generator().manual_seed(5)
    slope = torch.randn(out.shape, generator=random, dtype=torch.float64).to(DEVICE, torch.bfloat16).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, given, slope)]


def assert_like_reference(
    inputs: list[Tensor], dtype: torch.dtype, backend: str, slack: float = 1.0, **options: Any
) -> list[Tensor]:
    rounded = [x.to(dtype).double() for x in inputs]  # the reference sees what the kernel sees
    ours = values_and_gradients(rounded, dtype, backend=backend, **options)
    theirs = values_and_gradients(rounded, torch.float64, backend="reference", **options)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        error = (a.double() - b).norm() / b.norm().clamp(min=1e-3)
        assert error < slack * TOLERANCE[dtype], f"{name}: {error:.1e}"
    return ours


# --- the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_three_tokens_by_hand(backend: str) -> None:
    """Lengths 5 and 1, mean query ((3, 4) 5 + (0, -1)) / 6 = (2.5, 19 / 6); scores 2.5, -2.5 and 19 / 6."""
    q = torch.tensor([[3.0, 4.0], [0.0, -1.0]], device=DEVICE).view(2, 1, 2)
    k = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], device=DEVICE).view(3, 1, 2)
    v = torch.tensor([1.0, 100.0, 3.0], device=DEVICE).view(3, 1, 1)
    out = rank_one_attention(q, k, v, eps=1e-9, backend=backend)
    torch.testing.assert_close(out.item(), (2.5 * 1.0 + 19 / 6 * 3.0) / (2.5 + 19 / 6))
    scaled = rank_one_attention(q, k, v, scale=0.25, eps=1.0, backend=backend)
    mean = torch.tensor([15.0, 19.0]) / 2 / 2 / (3.0 + 1.0)  # q / 2: lengths 2.5 and 0.5
    weights = (mean / 2).tolist()
    torch.testing.assert_close(scaled.item(), (weights[0] + 3.0 * weights[1]) / (sum(weights) + 1.0))


def test_it_is_one_row_of_relu_attention() -> None:
    """Pure ReLU attention of the mean query, its weights brought to the sum 1 (invariant 6 of Linear-InfSA)."""
    (q, k, v), _ = make("one")
    length = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    mean = (length * q).sum(0, keepdim=True) / length.sum(0, keepdim=True)
    ones = torch.ones_like(v[..., :1])
    row, _ = relu_attention(mean, k, torch.cat([v, ones], -1), eps=1e-12, backend="reference")
    torch.testing.assert_close(
        rank_one_attention(q, k, v, eps=1e-12, backend="reference"), (row[..., :-1] / row[..., -1:]).squeeze(0)
    )


def test_rank_one_scores_give_the_left_perron_vector() -> None:
    """A = u w^T with positive u and w: the weights of the sources are w over its sum (invariant 7)."""
    u, w = torch.rand(9, 1, 1).double() + 0.1, torch.rand(7, 1, 1).double() + 0.1
    direction = torch.randn(1, 1, 5).double()
    weights = rank_one_attention(u * direction, w * direction, torch.eye(7).double().unsqueeze(1), eps=1e-12)
    torch.testing.assert_close(weights.flatten(), (w / w.sum()).flatten())


def test_reference_differentiates_twice() -> None:
    inputs, _ = make("one", 4, 3, 1, (2, 2))
    given = [x.requires_grad_() for x in inputs]

    def f(*x: Tensor) -> Tensor:
        return rank_one_attention(*x, backend="reference")

    assert torch.autograd.gradcheck(f, given)
    assert torch.autograd.gradgradcheck(f, given)


@pytest.mark.parametrize("kind", ["one", "batch", "padded", "ragged"])
def test_gather_is_the_reference(kind: str) -> None:
    inputs, members = make(kind)
    assert_like_reference(inputs, torch.float64, "gather", **members)
    assert_like_reference(inputs, torch.float64, "gather", **members, factor=-0.7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["one", "batch", "padded"])
def test_a_row_for_each_target(kind: str, backend: str, small_chunks: None) -> None:
    """The row by the factor, without a copy; its gradient is that of a sum over targets, added up in full precision."""
    inputs, members = make(kind)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = [x.to(dtype).double() for x in inputs]
        ours = values_and_gradients(rounded, dtype, backend=backend, factor=1.5, spread=True, **members)
        leaves = [x.requires_grad_() for x in rounded]
        rows = 1.5 * rank_one_attention(*leaves, backend="reference", **members)
        truth = rows.unsqueeze(-3).expand(ours[0].shape)
        random = torch.Generator().manual_seed(5)  # as in values_and_gradients
        slope = torch.randn(truth.shape, generator=random, dtype=torch.float64).to(DEVICE, torch.bfloat16).double()
        for name, a, b in zip(NAMES, ours, [truth, *torch.autograd.grad(truth, leaves, slope)], strict=True):
            assert a.shape == b.shape, name
            assert (a.double() - b).norm() < TOLERANCE[dtype] * b.norm(), name
        assert ours[0].stride(-3) == 0


def test_members_are_graphs_of_their_own() -> None:
    inputs, ptr = make("ragged")
    out = rank_one_attention(*inputs, **ptr, backend="reference")
    bounds = zip(*(itertools.pairwise(x.tolist()) for x in ptr.values()), strict=True)
    for g, ((t, t_end), (s, s_end)) in enumerate(bounds):
        alone = rank_one_attention(inputs[0][t:t_end], inputs[1][s:s_end], inputs[2][s:s_end], backend="reference")
        torch.testing.assert_close(out[g], alone)
    (q, k, v), lengths = make("padded")
    out = rank_one_attention(q, k, v, **lengths, backend="reference")
    torch.testing.assert_close(out[0], rank_one_attention(q[0], k[0, :19], v[0, :19], backend="reference"))
    assert (out[1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_is_a_row_of_zeros(backend: str) -> None:
    (q, k, v), _ = make("one", 12, 9)
    q, k, v = q.float(), k.float(), v.float()
    reads, read = torch.rand(12, device=DEVICE) < 0.6, torch.rand(9, device=DEVICE) < 0.6
    out = rank_one_attention(q * reads[:, None, None], k * read[:, None, None], v, backend=backend)
    torch.testing.assert_close(out, rank_one_attention(q[reads], k[read], v[read], backend="reference"))


# --- the kernels ----------------------------------------------------------------------------------------------


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
class TestTriton:
    @pytest.mark.parametrize(
        ("kind", "dtype", "heads", "widths"),
        [
            ("batch", torch.float32, 2, (12, 10)),
            ("batch", torch.bfloat16, 1, (40, 33)),
            ("padded", torch.float16, 2, (8, 16)),
            ("padded", torch.float32, 1, (40, 5)),
            ("ragged", torch.float32, 2, (10, 33)),
            ("ragged", torch.bfloat16, 3, (16, 16)),
        ],
        ids=lambda x: str(x).removeprefix("torch."),
    )
    def test_like_the_reference(
        self, kind: str, dtype: torch.dtype, heads: int, widths: Any, small_chunks: None
    ) -> None:
        inputs, members = make(kind, heads=heads, widths=widths)
        assert_like_reference(inputs, dtype, "triton", **members)

    @pytest.mark.parametrize(("targets", "sources"), [(1, 1), (1, 70), (65, 1), (300, 64)])
    def test_its_own_chunks(self, targets: int, sources: int) -> None:
        inputs, _ = make("one", targets, sources, 2, (16, 16))
        inputs = [x.abs().float().double() for x in inputs]  # something is read even where there is one token
        ours = values_and_gradients(inputs, torch.float32, backend="triton")
        theirs = values_and_gradients(inputs, torch.float64, backend="reference")
        for a, b in zip(ours, theirs, strict=True):  # with one source, its gradient is the difference of equal numbers
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)

    def test_padding_is_never_read(self, nan_filled_allocations: None, small_chunks: None) -> None:
        """NaN in padding, and memory that starts as NaN."""
        inputs, lengths = make("padded", heads=1)
        expected = values_and_gradients(inputs, torch.float32, backend="triton", **lengths)
        q, k, v = (x.clone() for x in inputs)
        q[1, 19:], k[0, 19:], v[0, 19:], k[1], v[1] = (math.nan,) * 5
        got = values_and_gradients([q, k, v], torch.float32, backend="triton", **lengths)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert (got[0][1] == 0).all() and (got[2][0, 19:] == 0).all() and (got[1][1, 19:] == 0).all()

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

    def test_the_same_input_gives_the_same_bits(self, small_chunks: None) -> None:
        inputs, members = make("ragged", heads=1)
        first, second = (values_and_gradients(inputs, torch.float16, backend="triton", **members) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_chunks(self) -> None:
        """Rows are dealt by their number alone: about as many programs as fit at once, whole tiles for each."""
        launch = kernels()
        none = launch.Members(None, None, None, None)
        x = torch.empty(1, 65_536, 8, 64, dtype=torch.bfloat16, device="meta")
        plan = launch._plan(x, x, x, none)
        assert plan.targets == plan.sources == (65_536, 1024, 64) and plan.groups == 8
        narrow = torch.empty(1, 65_536, 8, 16, dtype=torch.bfloat16, device="meta")
        assert launch._plan(narrow, narrow, narrow, none).groups == 2  # a cache line of four heads
        assert launch._plan(narrow.float(), narrow.float(), narrow.float(), none).groups == 4

    def test_opcheck(self) -> None:
        """Schema, autograd registration, fake tensors and AOT dispatch with dynamic shapes."""
        x = [torch.randn(2, 5, 1, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
        lengths = torch.tensor([5, 2], device=DEVICE)
        op = torch.ops.graphattn.rank_one_attention.default
        torch.library.opcheck(op, (*x, lengths, lengths, None, None, 1e-6, 1e-5, 0.9, True, "triton"))

    def test_kinds_of_launches_have_numbers_of_their_own(self) -> None:
        """Also where another thread asks between (autograd has its own): with one number for two kinds, one of them
        would be launched as the other."""
        number_of = importlib.import_module("graphattn_kernels._triton").number_of
        between: list[int] = []

        class Interrupted:
            def __hash__(self) -> int:
                if not between:
                    between.append(number_of(("asked between",)))
                return 7

        kind = (Interrupted(),)
        mine = number_of(kind)
        assert number_of(kind) == mine and between == [number_of(("asked between",))] != [mine]


# --- properties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_positive_gives_exactly_zero(backend: str) -> None:
    """And finite gradients, also where queries are zero."""
    q = torch.rand(2, 40, 2, 16, device=DEVICE, requires_grad=True)
    k = (-torch.rand(2, 33, 2, 16, device=DEVICE)).requires_grad_()
    v = torch.randn(2, 33, 2, 16, device=DEVICE, requires_grad=True)
    for factor in (1.0, 0.0):
        out = rank_one_attention(q * factor, k, v, backend=backend)
        assert (out == 0).all()
        for grad in torch.autograd.grad(out.sum(), (q, k, v)):
            assert (grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sources_may_come_in_any_order(backend: str) -> None:
    (q, k, v), _ = make("one")
    q, k, v, order = q.float(), k.float(), v.float(), torch.randperm(27, device=DEVICE)
    out = rank_one_attention(q, k, v, backend=backend)
    torch.testing.assert_close(rank_one_attention(q.flip(0), k[order], v[order], backend=backend), out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_kept(backend: str) -> None:
    q, k, v = (torch.rand(2, 20, 1, 16, device=DEVICE) for _ in range(3))
    k[0, 3, 0, 2] = math.nan
    out = rank_one_attention(q, k, v, backend=backend)
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("targets", "sources"), [(0, 3), (3, 0), (0, 0)])
def test_no_tokens(targets: int, sources: int, backend: str) -> None:
    x = [torch.randn(n, 2, 16, device=DEVICE, requires_grad=True) for n in (targets, sources, sources)]
    out = rank_one_attention(*x, backend=backend)
    assert out.shape == (2, 16) and (out == 0).all()
    for y, grad in zip(x, torch.autograd.grad(out.sum(), x), strict=True):
        assert grad.shape == y.shape and (grad == 0).all()
    out = rank_one_attention(*x, spread=True, backend=backend)
    assert out.shape == (targets, 2, 16) and (out == 0).all()
    assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), x))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_compile(backend: str) -> None:
    """One graph, with gradients, equal to the eager run."""
    torch._dynamo.reset()

    def f(*inputs: Tensor) -> Tensor:
        rows = rank_one_attention(*inputs, factor=0.5, spread=True, backend=backend)
        return (rows * inputs[0]).sum() + rank_one_attention(*inputs, backend=backend).square().sum()

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
    torch.library.opcheck(
        torch.ops.graphattn.rank_one_attention.default, (*x, *members, 1e-6, 1e-5, 0.9, not ragged, "gather")
    )


def test_autocast() -> None:
    q, k, v = (torch.randn(5, 1, 4, device=DEVICE) for _ in range(3))
    with torch.autocast(DEVICE, torch.bfloat16):
        for backend in ("auto", "reference"):
            assert rank_one_attention(q, k.bfloat16(), v, backend=backend).dtype == torch.bfloat16


def test_no_second_derivative() -> None:
    x = torch.rand(3, 1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(rank_one_attention(x, x, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (ArgumentTypeError, "v must be a tensor, got list", {"v": [1.0]}),
        (ArgumentError, "k must have the channels of q, 4, got 5", {"k": torch.ones(2, 6, 3, 5)}),
        (ArgumentError, "scale and eps must be positive, got -1", {"scale": -1}),
        (ArgumentError, "scale and eps must be positive, got .* and 0", {"eps": 0.0}),
        (ArgumentError, "backend must be", {"backend": "best"}),
        (ArgumentTypeError, "factor must be a number, got list", {"factor": [1.0]}),
        (ArgumentError, "target_ptr and source_ptr come together", {"source_ptr": torch.tensor([0, 5])}),
    ],
)
def test_bad_input(error: type[Exception], match: str, given: dict[str, object]) -> None:
    good = {"q": torch.ones(2, 5, 3, 4), "k": torch.ones(2, 6, 3, 4), "v": torch.ones(2, 6, 3, 4)}
    with pytest.raises(error, match=match):
        rank_one_attention(**{**good, **given})  # type: ignore[arg-type]


def test_what_was_checked_is_remembered_by_shape_dtype_and_device() -> None:
    good = {"q": torch.ones(2, 5, 3, 4), "k": torch.ones(2, 6, 3, 4), "v": torch.ones(2, 6, 3, 4)}
    for _ in range(2):
        rank_one_attention(**good)
        with pytest.raises(ArgumentTypeError, match="v must have the dtype"):
            rank_one_attention(**{**good, "v": good["v"].double()})
        with pytest.raises(ArgumentError, match="one row for each source"):
            rank_one_attention(**{**good, "v": torch.ones(2, 7, 3, 4)})
        with pytest.raises(ArgumentError, match="one length for each batch entry"):
            rank_one_attention(**good, target_lengths=torch.tensor([5, 5, 5]))
        with pytest.raises(ArgumentTypeError, match="int32 or int64"):
            rank_one_attention(**good, target_lengths=torch.tensor([5.0, 5.0]))


def test_a_row_for_each_target_of_members_one_after_the_other_is_refused() -> None:
    (q, k, v), ptr = make("ragged")
    with pytest.raises(ArgumentError, match="spread must be False"):
        rank_one_attention(q, k, v, **ptr, spread=True)


# --- on a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
class TestGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("width", [1, 8, 16, 40, 64, 128, 256])
    def test_real_sizes(self, width: int, dtype: torch.dtype) -> None:
        for kind, targets, sources in (("batch", 3000, 2777), ("padded", 515, 640), ("ragged", 9000, 8500)):
            inputs, members = make(kind, targets, sources, 3, (width, width))
            # With one channel, the mixture depends on the length of the mean query by eps alone: of the gradient of q,
            # little is left but rounding. Else twice that of small inputs, for sums over thousands.
            slack = 2.0 if width > 1 or dtype != torch.float32 else 200.0
            assert_like_reference(inputs, dtype, "triton", slack, **members)

    def test_331_776_tokens(self) -> None:
        x = [torch.randn(1, 331_776, 16, 64, device="cuda").bfloat16() for _ in range(3)]
        out = rank_one_attention(*x)
        torch.testing.assert_close(out, rank_one_attention(*x, backend="gather"), rtol=2e-2, atol=1e-3)

    @pytest.mark.parametrize("kind", ["batch", "padded", "ragged"])
    def test_a_hundred_repeats_give_the_same_bits(self, kind: str) -> None:
        """Whichever program ends last, and adds what all have stored."""
        inputs, members = make(kind, 30_000, 25_000, 4, (64, 64))
        options = {**members, "factor": 0.95, "spread": kind != "ragged"}
        first = assert_like_reference(inputs, torch.bfloat16, "triton", 2.0, **options)
        rounded = [x.bfloat16().double() for x in inputs]
        for _ in range(100):
            again = values_and_gradients(rounded, torch.bfloat16, backend="triton", **options)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("kind", ["batch", "padded", "ragged"])
    def test_a_cuda_graph_replays_on_new_inputs(self, kind: str) -> None:
        """And nothing waits for the device, which capture would not allow."""
        inputs, members = make(kind, 6000, 5000, 4, (64, 64))
        static = [x.bfloat16().requires_grad_() for x in inputs]

        def step() -> list[Tensor]:
            out = rank_one_attention(*static, **members)
            return [out.detach(), *torch.autograd.grad(out.sum(), static)]

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
