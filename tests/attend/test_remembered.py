"""Of equal calls only the first is checked and chooses a backend; nothing else about them may differ."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, attention, patterns
from graphattn.attention import attend, draw_seed
from graphattn.backends import _dense, auto, remembered
from graphattn.errors import ArgumentError, ArgumentTypeError, BackendError
from graphattn.score import GATv2Score

N, H, D = 5, 2, 4


@pytest.fixture
def graph() -> TokenGraph:
    return TokenGraph.from_edge_index(torch.tensor([[0, 1, 2, 2, 4, 1], [1, 1, 0, 3, 3, 0]]), num_tokens=N)


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "select", lambda backend, q, v: "gather")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two, checks and choice, each call went through."""
    seen: list[str] = []

    def spy(name: str) -> None:
        real = getattr(attention, name)

        def call(*args: Any, **options: Any) -> Any:
            seen.append(name)
            return real(*args, **options)

        monkeypatch.setattr(attention, name, call)

    for name in ("check_inputs", "choose", "named"):
        spy(name)
    return seen


def rows(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(N, H, D, **options), torch.randn(N, H, D, **options), torch.randn(N, H, D, **options)


def test_an_equal_call_is_not_looked_at_again(graph: TokenGraph, looks: list[str]) -> None:
    bias = torch.randn(graph.num_edges, H)
    attend(graph, *rows(), edge_bias=bias)
    assert looks == ["check_inputs", "choose"]
    q, k, v = rows()
    out = attend(graph, q, k, v, edge_bias=bias, scale=0.3)
    assert looks == ["check_inputs", "choose"]
    expected = attend(graph, q, k, v, edge_bias=bias, scale=0.3, backend="reference")
    torch.testing.assert_close(out, expected)
    assert looks[2:] == ["check_inputs", "named"]


@pytest.mark.parametrize(
    "change",
    [
        {"q": torch.randn(N, H, D + 1), "k": torch.randn(N, H, D + 1)},
        {"v": torch.randn(N, H, D + 1)},
        {"q": torch.randn(N, H, D, requires_grad=True)},
        {x: torch.randn(N, H, D, dtype=torch.float64) for x in "qkv"},
        {x: torch.randn(3, N, H, D) for x in "qkv"},
        {"edge_gate": torch.randn(6, H, D)},
        {"edge_bias": torch.randn(6)},
        {"clamp": 5.0},
        {"need_lse": True},
        {"need_product": True},
        {"dropout_p": 0.5, "dropout_seed": torch.tensor([1, 2])},
        {"score": GATv2Score(H, D)},
        {"backend": "gather"},
    ],
    ids=lambda change: " ".join(change),
)
def test_another_call_is_looked_at(change: dict[str, Any], graph: TokenGraph, looks: list[str]) -> None:
    given = dict(zip("qkv", rows(), strict=True))
    attend(graph, **given)
    looks.clear()
    attend(graph, **{**given, **change})
    assert looks == ["check_inputs", "named" if "backend" in change else "choose"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": torch.randn(N + 1, H, D)}, ArgumentError, "targets"),
        ({"k": torch.randn(N, H, D + 1)}, ArgumentError, "q and k must agree"),
        ({"k": torch.randn(N, H, D).double()}, ArgumentTypeError, "k must have the dtype"),
        ({"q": torch.ones(N, H, D, dtype=torch.int64)}, ArgumentTypeError, "q must be a floating tensor"),
        ({"v": None}, ArgumentTypeError, "v must be a floating tensor"),
        ({"v": torch.randn(N, H, D, device="meta")}, ArgumentError, "v must be on the device"),
        ({"edge_bias": torch.randn(6, H).double()}, ArgumentTypeError, "edge_bias must have the dtype"),
        ({"edge_bias": torch.randn(7, H)}, ArgumentError, "edge_bias must be"),
        ({"edge_bias": [1.0]}, ArgumentTypeError, "edge_bias must be a tensor"),
        ({"edge_gate": torch.randn(6, H, D + 1)}, ArgumentError, "edge_gate must"),
        ({"clamp": -1.0}, ArgumentError, "clamp must be positive"),
        ({"dropout_p": 1.5}, ArgumentError, "dropout_p must lie"),
        ({"dropout_p": 0.1}, ArgumentError, "dropout_seed"),
        ({"dropout_p": 0.1, "dropout_seed": torch.ones(2)}, ArgumentTypeError, "dropout_seed"),
        ({"backend": "flash"}, BackendError, "flash"),
        ({"backend": "none"}, ArgumentError, "backend must be"),
        ({"backend": ["sdpa"]}, ArgumentTypeError, "backend must be 'auto' or a name, got list"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_errors_come_after_good_calls(
    change: dict[str, Any], error: type[Exception], text: str, graph: TokenGraph
) -> None:
    edges = {"edge_bias": torch.randn(6, H), "edge_gate": torch.randn(6, H, D)}
    given: dict[str, Any] = {**dict(zip("qkv", rows(), strict=True)), **edges, "clamp": 1.0}
    seed = draw_seed(torch.Generator().manual_seed(0))
    for _ in range(2):
        attend(graph, **given)
        attend(graph, **given, dropout_p=0.1, dropout_seed=seed)
    with pytest.raises(error, match=text):
        attend(graph, **{**given, **change})


def test_a_parameter_of_a_score_is_checked_each_time(graph: TokenGraph) -> None:
    attend(graph, *rows(), score=GATv2Score(H, D))
    with pytest.raises(ArgumentError, match="att must be"):
        attend(graph, *rows(), score=GATv2Score(H, D + 1))


def test_preparing_a_graph_makes_it_choose_again(graph: TokenGraph, looks: list[str]) -> None:
    attend(graph, *rows())
    graph.prepare("tiles")
    looks.clear()
    attend(graph, *rows())
    assert looks == ["check_inputs", "choose"]


def test_a_choice_that_could_not_wait_is_not_remembered(
    graph: TokenGraph, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "waits_for_nothing", lambda device: True)
    for _ in range(2):
        attend(graph, *rows())
    assert looks == ["check_inputs", "choose"] * 2


def test_memory_is_bounded(graph: TokenGraph) -> None:
    for width in range(1, 150):
        x = torch.randn(N, 1, width)
        attend(graph, x, x, x, backend="gather")
    assert graph._chosen is not None
    assert 0 < len(graph._chosen) <= 64


def test_nothing_of_the_caller_is_kept(graph: TokenGraph) -> None:
    score, bias = GATv2Score(H, D), torch.randn(graph.num_edges, H)
    tensors = [*rows(), bias]
    attend(graph, *tensors[:3], score=score, edge_bias=bias)
    kept = [weakref.ref(x) for x in (*tensors, score, score.att)]
    gc.disable()
    try:
        del tensors, score, bias
        assert [x() for x in kept] == [None] * len(kept)
        other = patterns.window(N, 1)
        attend(other, *rows())
        assert other._chosen
        gone = weakref.ref(other)
        del other
        assert gone() is None, "a graph must not wait for the garbage collector: its memory is the device's"
    finally:
        gc.enable()


def test_a_copy_chooses_for_itself(graph: TokenGraph) -> None:
    attend(graph, *rows())
    assert pickle.loads(pickle.dumps(graph))._chosen is None


# --- the order of PyTorch's kernels ------------------------------------------------------------------------------


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], bool]]:
    """What each call of PyTorch's attention found: the order of its kernels, and whether flash is on."""
    seen: list[tuple[list[int], bool]] = []
    real = _dense.F.scaled_dot_product_attention

    def call(*args: Any, **options: Any) -> Tensor:
        seen.append((torch._C._get_sdp_priority_order(), torch.backends.cuda.flash_sdp_enabled()))
        return real(*args, **options)

    monkeypatch.setattr(_dense.F, "scaled_dot_product_attention", call)
    return seen


OURS = [_dense.SDPBackend.CUDNN_ATTENTION, _dense.SDPBackend.FLASH_ATTENTION]
OURS += [_dense.SDPBackend.EFFICIENT_ATTENTION, _dense.SDPBackend.MATH]


@pytest.mark.parametrize("flash", [True, False])
def test_our_order_of_kernels_lasts_for_one_call(flash: bool, order: list[tuple[list[int], bool]]) -> None:
    before = torch._C._get_sdp_priority_order()
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in rows())
    torch.backends.cuda.enable_flash_sdp(flash)
    try:
        out = _dense.dense_attention(OURS, q, k, v, scale=0.5)
        assert torch.backends.cuda.flash_sdp_enabled() == flash
        with pytest.raises(RuntimeError):
            _dense.dense_attention(OURS, q, k[..., :1], v)
        if flash:  # else it is sdpa_kernel that puts the order back, those that are off last (torch 2.13)
            assert torch._C._get_sdp_priority_order() == before
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
        torch._C._set_sdp_priority_order(before)
    assert [found[:4] for found, _ in order] == [[int(kernel) for kernel in OURS]] * 2
    assert all(on for _, on in order)
    torch.testing.assert_close(out, (q @ k.mT * 0.5).softmax(-1) @ v)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_knows_nothing_of_it(graph: TokenGraph) -> None:
    graph.prepare("gather")
    compiled = torch.compile(lambda q, k, v: attend(graph, q, k, v, backend="gather"), fullgraph=True, backend="eager")
    given = rows()
    first = compiled(*given)
    assert graph._chosen is None
    expected = attend(graph, *given, backend="gather")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(compiled(*given), first)
    torch.testing.assert_close(first, expected)
