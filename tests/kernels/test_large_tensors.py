"""Tensors of more than 2^31 numbers, where an offset in 32 bits would wrap: they only fit a large GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn_kernels import Structure, View, csr_attention

pytestmark = pytest.mark.gpu
BACKENDS = pytest.mark.parametrize("backend", ["gather", "triton"])
WIDE = 1024  # heads times channels


def needs_memory(gigabytes: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory, got {free:.0f}")


def attention_and_gradients(structure: Structure, tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out, lse = csr_attention(structure, backend=backend, **leaves)  # type: ignore[arg-type]
    grads = torch.autograd.grad((out, lse), list(leaves.values()), (out.detach(), torch.ones_like(lse)))
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(leaves, grads, strict=True))}


@BACKENDS
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_more_than_two_to_the_31_numbers_in_the_token_rows(backend: str, index: torch.dtype) -> None:
    """Only the first and the last 50 rows have edges; alone, as a small graph, they give the same bits."""
    needs_memory(80)
    tokens, ends = 2**31 // WIDE + 100, 50
    random = torch.Generator().manual_seed(0)
    small = torch.randint(2 * ends, (2, 3000), generator=random)
    small[1, :600] = 2 * ends - 1  # the last row is a hub
    large = torch.where(small < ends, small, small + tokens - 2 * ends)
    structures = [
        TokenGraph.from_edge_index(edges.cuda(), n).structure for edges, n in ((small, 2 * ends), (large, tokens))
    ]
    structures = [Structure(*(View(*(x if x is None else x.to(index) for x in v)) for v in s)) for s in structures]
    at = torch.cat([torch.arange(ends), torch.arange(tokens - ends, tokens)]).cuda()
    few, many = {}, {}
    for name in ("q", "k", "v"):
        few[name] = torch.randn(2 * ends, 8, WIDE // 8, generator=random).to("cuda", torch.bfloat16)
        many[name] = torch.zeros(tokens, 8, WIDE // 8, device="cuda", dtype=torch.bfloat16)
        many[name][at] = few[name]
    expected = attention_and_gradients(structures[0], few, backend)
    got = attention_and_gradients(structures[1], many, backend)
    for name, x in got.items():
        assert torch.equal(x[at], expected[name]), name
        if name != "lse":
            assert not x[ends : tokens - ends].any(), f"{name}: rows without an edge"


@pytest.mark.parametrize("score", ["dot", "additive"])
def test_more_than_two_to_the_31_numbers_in_the_edge_rows(score: str) -> None:
    """The last edges join tokens of their own; alone they give the same bits."""
    needs_memory(60)
    tokens, own, last = 1000, 100, 2000
    edges = 2**31 // WIDE + 5000
    random = torch.Generator().manual_seed(0)
    front = torch.randint(tokens - own, (2, edges - last), generator=random)
    back = torch.randint(own, (2, last), generator=random)
    whole = TokenGraph.from_edge_index(torch.cat([front, back + tokens - own], 1).cuda(), tokens).structure
    alone = TokenGraph.from_edge_index(back.cuda(), own).structure
    device = torch.Generator("cuda").manual_seed(0)
    tensors = {
        name: torch.randn(rows, 8, WIDE // 8, generator=device, device="cuda", dtype=torch.bfloat16)
        for name, rows in (("q", tokens), ("k", tokens), ("v", tokens), ("edge_gate", edges))
    }
    part = {name: x[-(last if name == "edge_gate" else own) :].clone() for name, x in tensors.items()}
    options = {"negative_slope": 0.2} if score == "additive" else {"need_product": True}

    def run(structure: Structure, tensors: dict[str, Tensor]) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in tensors.values()]
        results = csr_attention(structure, *leaves[:3], edge_gate=leaves[3], backend="triton", **options)  # type: ignore
        slopes = [y.detach().nan_to_num(neginf=0.0) for y in results]
        return [*(y.detach() for y in results), *torch.autograd.grad(results, leaves, slopes)]

    for a, b in zip(run(whole, tensors), run(alone, part), strict=True):
        assert torch.equal(a[-b.shape[0] :], b)
