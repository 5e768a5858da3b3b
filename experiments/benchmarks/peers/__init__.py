"""Who is compared. To add a peer: a class in one of these files (or one of its own), and its name here."""

from __future__ import annotations

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.peers.dense import SDPA
from experiments.benchmarks.peers.flex import FLEX
from experiments.benchmarks.peers.fused import Anemoi, TurboGnn
from experiments.benchmarks.peers.graph_libraries import Dgl, Pyg, TorchScatter
from experiments.benchmarks.peers.ours import OURS
from experiments.benchmarks.peers.plain import Compiled, Gather, Sparse
from experiments.benchmarks.peers.roof import Roof

__all__ = ["PEERS", "Call", "Peer", "Unsupported", "find"]

PEERS: tuple[type[Peer], ...] = (
    *OURS,
    Roof,
    Pyg,
    Gather,
    Compiled,
    Sparse,
    TorchScatter,
    Dgl,
    Anemoi,
    TurboGnn,
    *SDPA,
    *FLEX,
)


def find(names: list[str] | None) -> list[Peer]:
    """The peers of these names (``"ours"`` means all of ours); ``None``: all.

    Raises:
        ValueError: If there is no such peer.
    """
    peers = [peer() for peer in PEERS]
    if names is None:
        return peers

    def fits(peer: Peer, name: str) -> bool:
        low, asked = peer.name.lower(), name.lower()
        return low == asked or low.startswith((f"{asked} ", f"{asked}:"))

    unknown = [name for name in names if not any(fits(peer, name) for peer in peers)]
    if unknown:
        raise ValueError(f"peers must be of {[peer.name for peer in peers]}, got {unknown}")
    return [peer for peer in peers if any(fits(peer, name) for name in names)]
