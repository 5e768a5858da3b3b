"""Which backend ``backend="auto"`` takes, and why: the table, and one function that reads it.

| device | graph | in turn, the first that serves the call |
| --- | --- | --- |
| CUDA | windows of long prompts, see :func:`_suits_tiles` | tiles |
| CUDA | complete, causal, blocks of one size, other windows of prompts | sdpa, tiles, flex, edges |
| CUDA | another pattern, tiles filled :func:`~graphattn.graph.prepared.least_fill` or more | tiles, flex, edges |
| CUDA | a list of edges, estimated to fill tiles that much, or prepared for tiles | tiles, edges |
| any | lists of sources for blocks of :data:`LEAST_BLOCK` targets or more | lists, edges |
| CUDA | bits | tiles, edges |
| CUDA | any other | edges |
| CPU | the first four, of :data:`CPU_DENSE` sources or more, and one width of q and v | sdpa, edges |
| CPU | any other | edges |

Edges: ``triton`` on CUDA, ``numba`` on CPU, ``gather`` where these cannot run. ``reference`` and ``flash`` are taken by
name only, ``flex`` never for a list of edges (its mask is looked up, and compiled again for each shape).
"""

from __future__ import annotations

import torch

from graphattn.backends._windowed import SHORT
from graphattn.backends.base import Backend, Call
from graphattn.backends.edges import EDGES
from graphattn.backends.flash import Flash
from graphattn.backends.flex import Flex
from graphattn.backends.lists import Lists
from graphattn.backends.sdpa import Sdpa
from graphattn.backends.tiles import Tiles
from graphattn.errors import ArgumentError, BackendError
from graphattn.graph.graph_window import GraphWindow
from graphattn.graph.lists import ListGraph
from graphattn.graph.prepared import suitable_blocks
from graphattn_kernels import backends as kernels
from graphattn_kernels.csr_attention.api import select

__all__ = ["BACKENDS", "choose", "choose_steps", "named"]

# Sources of a target from which PyTorch's dense attention beats the walk along the edges on CPU. Complete graph,
# 8 heads of 16, float32, two cores, forward / forward + backward: 128 tokens, numba 4.5 / 12 ms, sdpa 8.5 / 11 ms;
# 512 tokens, numba 49 / 197 ms, sdpa 13 / 63 ms.
CPU_DENSE = 256

# Targets that must share a list for products of matrices to be worth while; for fewer, edges are walked along.
LEAST_BLOCK = 8

SDPA, TILES, FLEX, LISTS = Sdpa(), Tiles(), Flex(), Lists()
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (*EDGES, TILES, LISTS, FLEX, SDPA, Flash())}


def choose(call: Call) -> tuple[Backend, str]:
    """The backend that ``"auto"`` takes for a call, and why."""
    graph, on_cuda, width = call.graph, call.device.type == "cuda", call.q.shape[-1]
    if on_cuda and isinstance(graph.pattern, GraphWindow) and _suits_tiles(call, graph.pattern):
        return TILES, "one kernel reads what causal attention and the node rows would read apart"
    if (on_cuda or _is_wide(call)) and SDPA.reason(call) is None:
        return SDPA, "the graph is dense"
    if isinstance(graph, ListGraph):
        if graph.block >= LEAST_BLOCK and LISTS.reason(call) is None:
            return LISTS, "each block of targets reads one list of sources"
        return BACKENDS[select("auto", call.q, call.v)], "lists do not serve this call, and edges have every option"
    if on_cuda and TILES.lacks(call) is None and suitable_blocks(graph, width) is not None:
        return TILES, "the tiles of the graph are full enough for tensor cores"
    if on_cuda and graph.pattern is not None and FLEX.lacks(call) is None and suitable_blocks(graph, width) is not None:
        if FLEX.reason(call) is None:
            return FLEX, "the tiles of the pattern are full, and no other fused operation has these options"
    return BACKENDS[select("auto", call.q, call.v)], "this backend has every option, on every graph"


def choose_steps(name: str, device: torch.device) -> str:
    """The backend for the sparse operations one after another.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If it has no such operations, or cannot run here.
    """
    if name in BACKENDS and name not in kernels.BACKENDS:
        raise BackendError(
            f"backend {name!r} cannot run: it computes whole attention, and this takes operations that are parts of it "
            f"(explain() says why); use one of {sorted(kernels.BACKENDS)} or 'auto'"
        )
    return kernels.choose(name, device)


def named(name: str, call: Call) -> Backend:
    """The backend of this name, if it can serve the call.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If it cannot serve the call; the text says why.
    """
    if name not in BACKENDS:
        raise ArgumentError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {name!r}")
    reason = BACKENDS[name].reason(call)
    if reason is None:
        return BACKENDS[name]
    raise BackendError(f"backend {name!r} cannot run: {reason}; use 'auto'")


def _suits_tiles(call: Call, window: GraphWindow) -> bool:
    """Whether tiles beat causal attention and the node rows once more, in the windows of prompts.

    8 prompts of 4096 tokens, 73 of them nodes, bfloat16, on an H200, forward / forward + backward: 8 heads of 64, tiles
    0.45 / 1.62 ms, sdpa 0.47 to 0.8 / 1.85 to 2.2 ms, the host's; 32 heads of 128, tiles 3.1 / 12.8 ms, sdpa 2.1 / 9.3
    ms, but where padding on the left has to be moved first, 11.4 and 15.4 ms. Short prompts take a mask of all pairs.
    """
    if window.direction != "uni" or window.num_targets <= SHORT:
        return False
    return (call.q.shape[-1] < 128 or window.padding == "left") and TILES.reason(call) is None


def _is_wide(call: Call) -> bool:
    """Whether rows are long enough for PyTorch's kernel on CPU, which has one width for q and v only."""
    graph = call.graph
    if isinstance(graph.pattern, GraphWindow):
        return call.q.shape[-1] == call.v.shape[-1]  # every batch has its own, and listing its edges costs more
    if graph.pattern is None or graph.num_sources < CPU_DENSE * max(graph.num_members, 1):
        return False
    return call.q.shape[-1] == call.v.shape[-1]
