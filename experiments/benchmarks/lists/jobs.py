"""What is measured: peers on drawn sub-graphs, on lists for blocks, on a choice for each target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from graphattn import TokenGraph, attend
from graphattn.graph import subsample
from graphattn.kernels import block_scores

__all__ = ["CUDA", "SDPA", "SECTIONS", "Job"]

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SDPA = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash2": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass
class Job:
    """A peer of a case: ``step`` runs it, and where there is one, ``graph`` is what is checked."""

    section: str
    case: str
    peer: str
    step: Callable[[list[Tensor]], Tensor]
    inputs: list[Tensor]
    graph: TokenGraph | None = None
    backward: bool = True
    backend: str = "auto"
    """Of the attention that is checked."""


def dense(kernel: str, mask: Tensor | None = None) -> Callable[[list[Tensor]], Tensor]:
    """PyTorch's attention by one kernel, tokens first as ours."""

    def run(x: list[Tensor]) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in x)
        if not CUDA:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        with sdpa_kernel(SDPA[kernel]):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return run


def tokens(batch: int, n: int, heads: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(batch, n, heads, 64, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(3)]


def draw(scheme: str, n: int, keep: float) -> TokenGraph:
    if scheme == "uniform":
        return subsample.uniform_graph(n, keep, batch=1, device=DEVICE)
    return subsample.jittered_windows(n, keep, sigma=keep * n, batch=1, device=DEVICE)


def ssa(quick: bool) -> Iterator[Job]:
    """Steps that draw their sub-graph; B = 1, 8 heads of 64, bfloat16."""
    for n in (256, 1024) if quick else (1024, 2048, 4096, 8192, 16384):
        x = tokens(1, n, 8, torch.bfloat16)
        for kernel in SDPA:
            yield Job("ssa", f"N={n}", f"sdpa {kernel}", dense(kernel), x)
        for scheme in ("uniform", "windows"):
            for part in (1, 2, 4, 8) if scheme == "uniform" else (2, 4, 8):

                def step(x: list[Tensor], scheme: str = scheme, n: int = n, part: int = part) -> Tensor:
                    return attend(draw(scheme, n, 1 / part), *x)  # type: ignore[return-value]

                yield Job("ssa", f"N={n}", f"ours {scheme} 1/{part}", step, x, draw(scheme, n, 1 / part))


def select(q: Tensor, k: Tensor, share: float, block: int = 64) -> TokenGraph:
    """Each block of queries, by its mean, takes the keys with the largest products; a list for each head."""
    with torch.no_grad():
        return TokenGraph.top_k(block_scores(q, k, block)[0], round(share * k.shape[1]), axes="h", block=block)


def blocks(quick: bool) -> Iterator[Job]:
    """Lists of 10 % of the keys for 64 queries, selection included and apart; B = 1, 8 heads of 64, bfloat16."""
    for n in (256,) if quick else (4096, 8192, 16384):
        x = tokens(1, n, 8, torch.bfloat16)
        for kernel in ("cuDNN", "flash2"):
            yield Job("blocks", f"n={n}", f"sdpa {kernel}", dense(kernel), x)
        graph = select(x[0], x[1], 0.1)
        yield Job("blocks", f"n={n}", "ours", lambda x: attend(select(x[0], x[1], 0.1), *x), x, graph)  # type: ignore[arg-type,return-value]
        yield Job("blocks", f"n={n}", "ours, lists ready", lambda x, g=graph: attend(g, *x), x, graph)  # type: ignore[misc]
        yield Job("blocks", f"n={n}", "selection alone", lambda x: select(x[0], x[1], 0.1).index, x, None, False)  # type: ignore[attr-defined]


def masks(quick: bool) -> Iterator[Job]:
    """A choice for each target and head. Targets 17 of the performance sheet: 64 x 6 masks of 197 tokens in float16."""
    batch, heads = (2, 2) if quick else (64, 6)
    x = tokens(batch, 197, heads, torch.float16)
    for density in (0.1, 0.25):
        case = f"n=197 {density:.0%}"
        mask = torch.rand(batch, heads, 197, 197, device=DEVICE) < density
        mask |= torch.eye(197, dtype=torch.bool, device=DEVICE)
        yield Job("masks", case, "sdpa efficient, bool mask", dense("efficient", mask), x)
        bias = torch.zeros_like(mask, dtype=torch.float16).masked_fill_(~mask, float("-inf"))
        yield Job("masks", case, "sdpa cuDNN, bias", dense("cuDNN", bias), x)
        yield Job("masks", case, "sdpa flash2, no mask", dense("flash2"), x)
        graph = TokenGraph.from_mask(mask, "bh")
        scores = torch.randn(batch, heads, 197, 197, device=DEVICE, dtype=torch.float16)
        yield from _choices(case, graph, mask, scores, round(density * 197), x)
        if CUDA:
            graph.prepare("flex")
            yield Job("masks", case, "flex", lambda x, g=graph: attend(g, *x, backend="flex"), x, graph, backend="flex")  # type: ignore[misc]
    for n in (256,) if quick else (4096, 8192, 16384):
        x = tokens(1, n, 8, torch.bfloat16)
        scores = torch.randn(1, 8, n, n, device=DEVICE, dtype=torch.bfloat16)
        graph = TokenGraph.top_k(scores, round(0.1 * n), axes="bh")
        for kernel in ("cuDNN", "flash2"):
            yield Job("masks", f"n={n} 10%", f"sdpa {kernel}, no mask", dense(kernel), x)
        yield from _choices(f"n={n} 10%", graph, None, scores, round(0.1 * n), x)


def _choices(
    case: str, graph: TokenGraph, mask: Tensor | None, scores: Tensor, k: int, x: list[Tensor]
) -> Iterator[Job]:
    words = graph.words  # type: ignore[attr-defined]

    def tiles(_: list[Tensor]) -> Tensor:
        made = type(graph)(words, graph.num_sources, "bh").prepare("tiles")  # type: ignore[call-arg]
        return made._blocks.by_target.mask  # type: ignore[union-attr]

    yield Job("masks", case, "ours, mask ready", lambda x: attend(graph, *x), x, graph)  # type: ignore[arg-type,return-value]
    yield Job("masks", case, "bits to tiles", tiles, x, None, False)
    chosen = lambda _: TokenGraph.top_k(scores, k, axes="bh").words  # type: ignore[attr-defined]  # noqa: E731
    yield Job("masks", case, "selection alone", chosen, x, None, False)
    if mask is not None:
        yield Job("masks", case, "mask to bits", lambda _: TokenGraph.from_mask(mask, "bh").words, x, None, False)  # type: ignore[attr-defined]


SECTIONS = {"ssa": ssa, "blocks": blocks, "masks": masks}
