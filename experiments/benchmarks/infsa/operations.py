"""Operation against operation: one head group of a batch of one, ``[1, N, 8, 64]``, a dense gradient of the output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.infsa.stopwatch import Stopwatch
from experiments.benchmarks.measure import TOLERANCE, Effort, timed
from experiments.benchmarks.reference import relative_error
from graphattn.graph.patterns import complete
from graphattn.mechanisms.infsa import infsa
from graphattn.mechanisms.linear_infsa import linear_infsa
from graphattn_kernels import rank_one_attention, relu_attention

__all__ = [
    "LINEAR",
    "OURS",
    "ROW",
    "SDPA",
    "HEADS",
    "WIDTH",
    "copy_rate",
    "floor_bytes",
    "operation_name",
    "operations",
]

HEADS, WIDTH = 8, 64
SDPA = ("SDPA cuDNN", "SDPA flash", "SDPA efficient")
INFSA, LINEAR, ROW = "InfSA one hop", "Linear-InfSA", "Linear-InfSA row"
OURS = (INFSA, LINEAR, ROW)
_EXACT = 4096  # tokens up to which softmax is checked in full
_BLOCKS = 65_536  # tokens up to which InfSA is, in blocks of rows
_SAMPLED = 512  # targets that are checked beyond

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def operation_name(tokens: int) -> str:
    """Of a row's workload."""
    return f"operation {tokens}"


def floor_bytes(tokens: int, name: str, what: str, itemsize: int = 2) -> float:
    """Bytes that a pass of Linear-InfSA has to move where no cache holds a tensor: q, k and v once forward; q, k and v
    once more and their gradients backward, and there the gradient of the output, unless it is one row.

    The output is one row, which all targets share.
    """
    tensors = 3 if what == "forward" else 9 + (name == LINEAR)
    return tensors * tokens * HEADS * WIDTH * itemsize


def copy_rate(effort: Effort) -> float:
    """Bytes a second, read and written, of a copy of 2 GiB on the device."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (timed(lambda: target.copy_(source), effort).median / 1e3)


def operations(tokens: int, watch: Stopwatch, peers: tuple[str, ...] | None = None) -> None:
    """Rows of all peers over ``tokens`` tokens, forward and forward+backward."""
    device = watch.device
    q, k, v, grad = _tensors(tokens, device)
    truth = _Truth(q, k, v, grad)
    graph = complete(tokens, device=device)
    scale = 1.0 / WIDTH
    ours: dict[str, Operation] = {
        INFSA: lambda q, k, v: infsa(graph, q, k, v, 1.0),  # type: ignore[dict-item, return-value]
        LINEAR: lambda q, k, v: linear_infsa(graph, q, k, v, 1.0),
        ROW: lambda q, k, v: rank_one_attention(q, k, v, scale=scale),
    }
    for name in (*SDPA, *OURS):
        if peers is not None and name not in peers:
            continue
        if name in SDPA and device.type != "cuda":
            continue
        operation = ours[name] if name in OURS else _sdpa(name)
        wanted = grad[:, 0] if name == ROW else grad
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        passes = {
            "forward": partial(_forward, operation, leaves),
            "forward+backward": partial(_both, operation, leaves, wanted),
        }
        for what, run in passes.items():
            watch.measure(
                operation_name(tokens),
                name,
                what,
                run,
                check=partial(truth.error, name),
                tolerance=TOLERANCE[q.dtype],
                expected=_expected(watch, name, what, tokens),
            )


def _tensors(tokens: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = 1, tokens, HEADS, WIDTH
    return [torch.randn(shape, generator=generator, device=device).to(torch.bfloat16) for _ in range(4)]


def _sdpa(name: str) -> Operation:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {
        "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
        "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    }[name]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return run


def _forward(operation: Operation, leaves: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [operation(*leaves)]


def _both(operation: Operation, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = operation(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def _expected(watch: Stopwatch, name: str, what: str, tokens: int) -> float | None:
    """Seconds, from the largest time there is."""
    known = [row for row in watch.rows if row.peer == name and row.what == what and row.ms is not None]
    known = [row for row in known if row.workload.startswith("operation")]
    if not known:
        return None
    before = int(known[-1].workload.split()[1])
    return known[-1].ms / 1e3 * (tokens / before) ** (1 if name in (LINEAR, ROW) else 2)  # type: ignore[operator]


class _Truth:
    """What is right for the tensors of one size: output and gradients where they can be computed another way in a
    moment, else the output of some targets."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> None:
        self.inputs, self.grad = (q, k, v), grad
        self._known: dict[str, list[Tensor]] = {}

    def error(self, name: str, results: list[Tensor]) -> float:
        """The worst relative L2 error of what a pass returns."""
        kind = "softmax" if name in SDPA else name
        if kind not in self._known:
            self._known = {kind: self._compute(kind)}  # one after the other: they are large
        truth = self._known[kind]
        if len(truth) == 1:
            results = [results[0][:, _some(self.grad)]]
        return max(relative_error(x.detach(), y) for x, y in zip(results, truth, strict=False))

    def _compute(self, kind: str) -> list[Tensor]:
        tokens = self.grad.shape[1]
        if kind == ROW:
            return self._in_full(_row, torch.float64, self.grad[:, 0])
        if kind == LINEAR:
            return self._in_full(lambda *x: _row(*x).unsqueeze(1).expand(self.grad.shape), torch.float64)
        if kind == INFSA and tokens <= _BLOCKS:
            return self._in_full(_blocks, torch.float32)
        if kind == "softmax" and tokens <= _EXACT:
            return self._in_full(_softmax, torch.float32)
        return [self._sampled(kind == INFSA)]

    def _in_full(self, operation: Operation, dtype: torch.dtype, grad: Tensor | None = None) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in self.inputs]
        out = operation(*leaves)
        grads = torch.autograd.grad(out, leaves, (self.grad if grad is None else grad).to(dtype))
        return [out.detach(), *grads]

    def _sampled(self, rectified: bool) -> Tensor:
        """The norm of all is estimated from the targets, to about 0.5 % (inputs are random)."""
        q, k, v = (x.float() for x in self.inputs)
        some = _some(q)
        scores = torch.einsum("bthd,bshd->bhts", q[:, some], k)
        if not rectified:
            return torch.einsum("bhts,bshd->bthd", (scores * WIDTH**-0.5).softmax(-1), v)
        weights = (scores / WIDTH).relu()
        norm = (weights.square().sum((-2, -1)) * (q.shape[1] / len(some))).sqrt()
        return torch.einsum("bhts,bshd->bthd", weights, v) / (norm + 1e-6)[:, None, :, None]


def _some(x: Tensor) -> Tensor:
    return torch.linspace(0, x.shape[1] - 1, min(_SAMPLED, x.shape[1]), device=x.device).long()


def _row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return rank_one_attention(q, k, v, scale=1.0 / WIDTH, backend="reference")


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return relu_attention(q, k, v, scale=1.0 / WIDTH, backend="gather")[0]


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("bthd,bshd->bhts", q, k) * WIDTH**-0.5).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)
