"""Attention of prompts in graph windows: ours beside causal kernels, FlexAttention and the released way, a dense mask.

    python -m experiments.benchmarks.windows --out runs/windows       # about a minute on one GPU

A batch of 8 prompts of 4096 tokens, 73 of which stand for the nodes of a complete tree (fan-out 8, 8) and read each
other within 2 hops, earlier ones only; 32 heads of 128 channels as in a model of 7B parameters, and 8 of 64; bfloat16.
Beside it a whole model, 4 layers of Llama-2-7B's shape in transformers, and what building the window takes of its step.
Written: windows.csv, windows.json, windows.md. Exit code 1 if a result is wrong; goals that are missed are printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.benchmarks.device import check_device
from experiments.benchmarks.measure import Effort, peak_mb, summary, timed
from experiments.benchmarks.windows_report import Row, goals_of, say, write
from graphattn import attend, patterns
from graphattn.graph.graph_window import GraphWindow
from graphattn.optional import available

__all__ = ["Row", "Shape", "main", "make_prompts"]

WRONG = 2e-2  # relative L2 error of a result in bfloat16 that is not rounding
_EFFORT = Effort(seconds=0.25, least=5, most=40, warm_ups=2)
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Sizes of one workload."""

    batch: int
    tokens: int
    heads: int
    width: int
    fan: int = 8

    def __str__(self) -> str:
        nodes = 1 + self.fan + self.fan**2
        return f"{self.batch} x {self.tokens} tokens ({nodes} nodes), {self.heads} heads of {self.width}"


def make_prompts(shape: Shape, device: str, *, padded: bool = False) -> dict[str, Tensor]:
    """Maps of a batch: the node tokens spread over the middle 80 % of a prompt; with ``padded``, up to a fifth of a
    prompt is left padding."""
    fan, tokens = shape.fan, shape.tokens
    tree = [-1, *(x for f in range(fan) for x in (0, *(fan * [1 + f * (fan + 1)])))]
    parent = torch.tensor(tree).expand(shape.batch, -1).contiguous()
    vertex = torch.full((shape.batch, tokens), -1)
    mask = torch.ones(shape.batch, tokens, dtype=torch.bool)
    for row in range(shape.batch):
        skip = tokens * row // (5 * shape.batch) if padded else 0
        mask[row, :skip] = False
        first, last = skip + (tokens - skip) // 10, tokens - (tokens - skip) // 10
        vertex[row, torch.linspace(first, last - 1, len(tree)).long()] = torch.arange(len(tree))
    found = {"node_of_token": vertex, "parent": parent, **({"mask": mask} if padded else {})}
    return {name: value.to(device) for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 0 if every result is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small prompts and a small model")
    options = parser.parse_args(argv)
    check_device(parser, options.device, "--device cpu --quick tries it out")
    device, begin = options.device, time.perf_counter()
    shapes = [Shape(8, 4096, 32, 128), Shape(8, 4096, 8, 64)]
    if options.quick:
        shapes = [Shape(2, 544, 2, 8, 3)]
    torch.manual_seed(0)
    rows: list[Row] = []
    for shape in shapes:
        for row in _operation(shape, device):
            rows.append(row)
            say(row)
    for row in [*_building(shapes[0], device), *_model(shapes[0], device, options.quick)]:
        rows.append(row)
        say(row)
    goals = list(goals_of(rows, [str(shape) for shape in shapes]))
    seconds = time.perf_counter() - begin
    write(options.out, rows, goals, [sys.executable, "-m", "experiments.benchmarks.windows", *(argv or sys.argv[1:])])
    print("\n" + "\n".join(goals) + f"\n{seconds:.0f} s in all", flush=True)
    return 1 if any(row.error is not None and row.error > WRONG for row in rows) else 0


def _operation(shape: Shape, device: str) -> Iterator[Row]:
    """The attention operation by each peer."""
    graph = patterns.graph_window(**make_prompts(shape, device), hops=2)
    left = patterns.graph_window(**make_prompts(shape, device, padded=True), hops=2)
    assert isinstance(graph, GraphWindow) and isinstance(left, GraphWindow)
    graph.prepare(), left.prepare()
    size = (shape.batch, shape.tokens, shape.heads, shape.width)
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    x = [torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    grad = torch.randn(size, device=device, dtype=dtype)
    additive = torch.where(graph.pair_mask, 0.0, -6000.0).to(dtype).unsqueeze(1)
    causal, on_cuda = patterns.causal(shape.tokens, device=device), device != "cpu"
    peers: dict[str, tuple[Run, GraphWindow | None]] = {
        "ours": (lambda q, k, v: attend(graph, q, k, v), graph),  # type: ignore[dict-item,return-value]
        "ours, left padding": (lambda q, k, v: attend(left, q, k, v), left),  # type: ignore[dict-item,return-value]
        "ours, causal": (lambda q, k, v: attend(causal, q, k, v), None),  # type: ignore[dict-item,return-value]
        "dense additive mask, SDPA": (lambda q, k, v: _sdpa(q, k, v, attn_mask=additive), graph),
        "dense additive mask, eager": (lambda q, k, v: _eager(q, k, v, additive), graph),
    }
    if on_cuda:
        kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
        for name, kernel in kernels.items():
            peers[f"causal, {name}"] = (lambda q, k, v, kernel=kernel: _sdpa(q, k, v, kernel, is_causal=True), None)
        peers["FlexAttention, BlockMask"] = (lambda q, k, v: attend(graph, q, k, v, backend="flex"), graph)  # type: ignore[dict-item,return-value]
        peers["ours, sdpa"] = (lambda q, k, v: attend(graph, q, k, v, backend="sdpa"), graph)  # type: ignore[dict-item,return-value]
        peers["ours, tiles"] = (lambda q, k, v: attend(graph, q, k, v, backend="tiles"), graph)  # type: ignore[dict-item,return-value]
    known = {id(window): _checked_rows(window, x) for window in (graph, left)}
    for name, (run, window) in peers.items():
        for what in ("forward", "forward+backward"):
            row = Row(str(shape), name, what)
            try:
                call = _pass(run, x, grad, what)
                if window is not None and what == "forward":
                    row.error = _error(call()[0], window, known[id(window)])
                row.ms, row.low, row.high = _time(call)
                row.peak_mb = peak_mb(call)
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                row.text = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            if on_cuda:
                torch.cuda.empty_cache()
            yield row


def _building(shape: Shape, device: str) -> Iterator[Row]:
    """The window, from maps that are on the device, with what attention needs of it."""
    maps = make_prompts(shape, device)
    nodes = maps["parent"].shape[1]
    known = {"node_tokens": nodes, "padding": "none"}
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("window", "sdpa", {}),
        ("window, sizes given", "sdpa", known),
        ("window and its tiles, sizes given", "tiles", known),
    ]
    for name, backend, options in ways if device != "cpu" else ways[:2]:
        row = Row(str(shape), name, "build")
        row.ms, row.low, row.high = _time(
            lambda b=backend, o=options: patterns.graph_window(**maps, hops=2, **o).prepare(b)
        )
        yield row


def _model(shape: Shape, device: str, quick: bool) -> Iterator[Row]:
    """4 layers of Llama: the loss of the last tokens, forward and backward, windowed and not."""
    what = "forward+backward of 4 layers"
    if not available("transformers"):
        yield Row(str(shape), "whole model", what, text="transformers is missing")
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    from graphattn.bridge import hf

    width = shape.heads * shape.width
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=11008 if not quick else 2 * width,
        num_hidden_layers=4,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.tokens,
        use_cache=False,
        attn_implementation="sdpa",
    )
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    model = LlamaForCausalLM(config).to(device, dtype)
    tokens = torch.randint(1000, (shape.batch, shape.tokens), device=device)
    maps = make_prompts(shape, device)
    batch = {"node_of_token": maps["node_of_token"], "parents": maps["parent"]}
    graph = patterns.graph_window(**maps, hops=2)
    additive = torch.where(graph.to_dense(), 0.0, -6000.0).to(dtype).unsqueeze(1)

    def step(**inputs: Any) -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=tokens, logits_to_keep=8, **inputs).logits.float().logsumexp(-1).sum().backward()

    def windowed() -> None:
        with hf.graph_window(batch, "uni-2"):
            step()

    peers: list[tuple[str, str, Callable[[], None]]] = [
        ("model, causal, sdpa", "sdpa", step),
        ("model, causal, graphattn", hf.NAME, step),
        ("model, windowed, graphattn (mask built in each step)", hf.NAME, windowed),
        ("model, dense additive mask, sdpa", "sdpa", lambda: step(attention_mask=additive)),
    ]
    for name, implementation, call in peers:
        model.set_attn_implementation(implementation)
        row = Row(str(shape), name, what)
        try:
            row.ms, row.low, row.high = _time(call)
            row.peak_mb = peak_mb(call)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            row.text = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        if device != "cpu":
            torch.cuda.empty_cache()
        yield row


def _sdpa(q: Tensor, k: Tensor, v: Tensor, kernel: SDPBackend | None = None, **options: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if kernel is None:
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)


def _eager(q: Tensor, k: Tensor, v: Tensor, additive: Tensor) -> Tensor:
    """As transformers' eager attention, on which the released code is built."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weight = (q @ k.mT) * q.shape[-1] ** -0.5 + additive
    return (weight.softmax(-1, dtype=torch.float32).to(q.dtype) @ v).transpose(1, 2)


def _pass(run: Run, x: list[Tensor], grad: Tensor, what: str) -> Callable[[], tuple[Tensor, ...]]:
    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (run(*x),)

    def both() -> tuple[Tensor, ...]:
        out = run(*x)
        return (out, *torch.autograd.grad(out, x, grad))

    return forward if what == "forward" else both


class _Truth(NamedTuple):
    """Rows of a window's result in float32, for the last entry of the batch: node tokens, and some of the text."""

    number: Tensor
    value: Tensor


def _checked_rows(window: GraphWindow, x: list[Tensor]) -> _Truth:
    last = window.slot.shape[0] - 1
    nodes = window.rows[last][window.rows[last] < window.num_targets]
    text = torch.linspace(window.num_targets // 4, window.num_targets - 1, 64, device=nodes.device).long()
    number = torch.cat([nodes, text])
    mask = window.to_dense()[last, number]
    q, k, v = (part.detach()[last].float().transpose(0, 1) for part in x)
    score = (q[:, number] @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return _Truth(number, torch.where(mask.any(-1)[:, None], score.softmax(-1) @ v, 0.0).transpose(0, 1))


def _error(out: Tensor, window: GraphWindow, truth: _Truth) -> float:
    mine = out.detach()[-1].index_select(0, truth.number).float()
    return float((mine - truth.value).norm() / truth.value.norm())


def _time(run: Callable[[], Any]) -> tuple[float, float, float]:
    if torch.cuda.is_available():
        found = timed(run, _EFFORT)
        return found.median, found.low, found.high
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begin))
    found = summary(times[1:])
    return found.median, found.low, found.high


if __name__ == "__main__":
    sys.exit(main())
