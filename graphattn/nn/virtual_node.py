"""A node that reads every node of a graph, and that they all read."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.nn.pool import pool, unpool

__all__ = ["VirtualNode"]


class VirtualNode(nn.Module):
    """A row for each graph, added to its tokens before a layer and updated by their sum after it (Gilmer et al., arXiv
    1704.01212; in the form of the baselines of Hu et al., "Open Graph Benchmark", arXiv 2005.00687).

    .. math::
        x_n \\leftarrow x_n + r, \\qquad
        r \\leftarrow r + \\mathrm{drop}\\big(\\mathrm{MLP}(r + \\textstyle\\sum_n x_n)\\big)

    The MLP has layer norms where OGB's code has batch norms, so that a batch may be one graph.

    Args:
        width: Channels.
        dropout: On the update.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = 2 * width
        self.mlp = nn.Sequential(
            *(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()),
            *(nn.Linear(hidden, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout)),
        )

    @staticmethod
    def read(x: Tensor, row: Tensor, batch: Tensor | None) -> Tensor:
        """``x [N, width]`` with each graph's row ``[num_graphs, width]`` added."""
        return x + unpool(row, batch, x.shape[0])

    def forward(self, row: Tensor, x: Tensor, batch: Tensor | None) -> Tensor:
        """New rows ``[num_graphs, width]`` from the tokens ``[N, width]``."""
        return row + self.mlp(row + pool(x, batch, row.shape[0], "sum"))
