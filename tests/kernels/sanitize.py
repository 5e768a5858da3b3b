"""Run a handful of Triton launches of every operation, value and gradient, under NVIDIA's compute-sanitizer.

    python tests/kernels/sanitize.py [memcheck] [racecheck] [initcheck] [synccheck]

``memcheck`` finds accesses out of bounds, ``racecheck`` races in shared memory, ``initcheck`` reads of memory that
nobody wrote, ``synccheck`` barriers that not all threads reach; default: the first three, at the same time. PyTorch's
allocator is told to keep no memory, so that every tensor has bounds of its own. Errors inside PyTorch's own kernels are
counted but not ours. Exits with 1 where one of our kernels has an error, and with 2 where a tool cannot run here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CASES = 5  # of covering_cases, on a graph with hubs that are cut: both scores, every dtype


def run_cases() -> None:
    """What runs under the tool."""
    import torch

    from graphattn_kernels import sddmm, segment_softmax, segment_sum, spmm, spread
    from graphattn_kernels.block_attention import block_attention
    from graphattn_kernels.blocks import from_mask
    from tests.kernels.cases import covering_cases, make
    from tests.kernels.judge import attend, results, small_pieces

    for case in covering_cases()[:CASES]:
        case = dataclasses.replace(case, graph="hubs", size=20)
        problem = make(case).to("cuda")
        with small_pieces("triton"):
            found = results(problem, lambda problem, **x: attend(problem, backend="triton", **x), case.dtype)
        structure = problem.structure
        q, k, v = (problem.tensors[name].to(case.dtype).requires_grad_() for name in "qkv")
        weights, _ = segment_softmax(structure, sddmm(structure, q, k, backend="triton"), backend="triton")
        mixed = spmm(structure, weights, v, backend="triton")
        total = spread(structure, segment_sum(structure, weights, backend="triton"), backend="triton")
        grads = torch.autograd.grad(mixed.sum() + total.sum(), (q, k, v))
        gradients = [*grads, *(x for name, x in found.items() if "gradient" in name)]
        assert all(bool(x.isfinite().all()) for x in gradients)
    for dtype in (torch.bfloat16, torch.float32):
        blocks = from_mask(torch.rand(1, 150, 150, device="cuda") < 0.1, 64, 64)
        rows = [torch.randn(1, 150, 2, 24, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
        out, _ = block_attention(blocks, *rows, backend="triton")
        assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(out.sum(), rows))
    run_dense_cases("cuda")
    torch.cuda.synchronize()
    print("the cases ran", flush=True)


def run_dense_cases(device: str) -> None:
    """A call of every operation that takes no list of edges; on a CPU, in Triton's interpreter."""
    import torch

    from graphattn_kernels import (
        SourceLists,
        agreed_edges,
        bilateral_vote,
        block_scores,
        connected_components,
        list_attention,
        rank_one_attention,
        relu_attention,
        select_bits,
        select_lists,
    )

    torch.manual_seed(0)
    backend = {"backend": "triton"}
    # Sizes that fill no tile: rows of 70 and 50 tokens, 24 channels; members of several sizes, one without tokens.
    ptr = torch.tensor([0, 33, 33, 70], dtype=torch.int32, device=device)
    sources = torch.tensor([0, 10, 12, 50], dtype=torch.int32, device=device)
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (torch.randn(n, 2, 24, device=device).to(dtype).requires_grad_() for n in (70, 50, 50))
        members = {"target_ptr": ptr, "source_ptr": sources}
        one = [x.detach()[None].requires_grad_() for x in (q, k, v)]
        _differentiate(relu_attention(q, k, v, **members, **backend), q, k, v)
        _differentiate(relu_attention(*one, causal=True, **backend), *one)
        _differentiate((rank_one_attention(q, k, v, **members, **backend),), q, k, v)
        _differentiate((rank_one_attention(*one, spread=True, **backend),), *one)
        block_scores(one[0], one[1], 16, **backend)
        scores = torch.randn(2, 5, 50, device=device).to(dtype)
        always = torch.arange(50, device=device) < 3
        select_bits(scores, 7, always=always, **backend)
        index, length = select_lists(scores[:1], 7, always=always, room=11, **backend)
        lists = SourceLists(index, length, None, 70, 50, 16, "", causal=False, own=False, disjoint=False)
        _differentiate(list_attention(lists, q, k, v, **backend), q, k, v)
        cube = torch.randn(1, 8, 5, 36, device=device).to(dtype).requires_grad_()
        _differentiate((bilateral_vote(cube, **backend),), cube)
        _differentiate((bilateral_vote(cube, reduce="mean", **backend),), cube)
    labels, counts = connected_components(agreed_edges(cube.detach(), **backend), **backend)
    assert bool((labels.amax((-2, -1)) == counts).all()) and bool((counts > 0).all())


def _differentiate(results: tuple[Any, ...], *inputs: Any) -> None:
    """The gradient of the floating results, all finite."""
    import torch

    total = sum(x.float().masked_fill(~x.isfinite(), 0.0).sum() for x in results)
    assert all(bool(x.isfinite().all()) for x in (results[0], *torch.autograd.grad(total, inputs)))


def start(tool: str) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = ["compute-sanitizer", "--tool", tool, "--print-limit", "200"]
    command += [sys.executable, __file__, "--run"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def report(tool: str, output: str) -> int:
    """Print what a tool found; 0: nothing in our kernels."""
    if "the cases ran" not in output:
        print(f"{tool}: cannot run here\n{output[-3000:]}")
        return 2
    # Lanes that hold copies of one sum write it to one place in one instruction. What Triton's shuffles leave there may
    # differ in the last bit, hence an error here (triton-lang/triton#7264); nobody reads before it is written.
    copies = re.compile(r"Error: Race reported between Write access at (\S+) .*\n=+ +and Write access at \1 .*")
    output, same = copies.subn("(a store of copies)", output)
    # A finding names its kernel: "at name+0x10"; a kernel of C++ has arguments, a namespace or a template.
    places = set(re.findall(r"\bat (.+?)\+0x[0-9a-f]+", output))
    ours = sorted(place for place in places if place.isidentifier())
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    print(f"{tool}: {' '.join(summary)}; in our kernels: {', '.join(ours) or 'nothing'}", end="")
    print(f"; {same} of them are one store of lanes that hold copies of a sum" if same else "")
    if places:
        print("\n".join(line[:200] for line in output.splitlines() if "Host Frame" not in line)[:6000])
    return int(bool(ours))


def main(tools: list[str]) -> int:
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not installed; it comes with the CUDA toolkit")
        return 2
    begin = time.time()
    running = {tool: start(tool) for tool in tools or ["memcheck", "racecheck", "initcheck"]}
    codes = [report(tool, process.communicate()[0]) for tool, process in running.items()]
    print(f"{time.time() - begin:.0f} s")
    return max(codes, key=lambda code: (code == 1, code))


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        run_cases()
    else:
        sys.exit(main(sys.argv[1:]))
