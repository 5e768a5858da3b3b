"""The connectivity predictor of Sparsifiner: a low-rank guess at an attention matrix, cheaper than the matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members

__all__ = ["ConnectivityPredictor", "Factors"]

_DEVIATION = 0.02
_FREE_RANK = 32


class Factors(NamedTuple):
    """The two factors of the approximate attention :math:`\\tilde A = U B`.

    Args:
        coefficients: U, ``[..., T, H, r]``.
        basis: B, ``[..., S, H, r]`` (all but S and r may be expanded dimensions).
    """

    coefficients: Tensor
    basis: Tensor

    def dense(self) -> Tensor:
        """:math:`\\tilde A`, ``[..., H, T, S]``."""
        return self.coefficients.movedim(-2, -3) @ self.basis.movedim(-2, -3).mT


class ConnectivityPredictor(nn.Module):
    """Low-rank scores of all pairs of tokens, from the queries and keys of one head.

    .. math::
        K'' = W_{\\downarrow}^\\top K', \\qquad
        U = \\operatorname{softmax}_r\\big(s\\, Q' K''^\\top\\big), \\qquad
        \\tilde A = U B

    With ``num_tokens``, as published (Wei et al., "Sparsifiner", CVPR 2023; the body of the paper could not be read, so
    this is from its diagram, its captions and the released code): :math:`W_\\downarrow` and :math:`W_\\uparrow`
    ``[num_tokens, r]`` are learned, a row for each position, for all heads, and :math:`B` is a non-negative function of
    :math:`W_\\uparrow^\\top`. Without it (ours), the rows are linear maps of the keys themselves, softmax over the
    tokens of a member: it fits any number of tokens, and is equivariant to their order.

    Our defaults are the paper's form: no reduction of channels (:math:`Q' = Q`), scale :math:`c^{-1/2}`, and one
    non-negative basis in both stages. ``parity=True`` is the released code (lim142857/Sparsifiner, 9a11e26): channels
    halved by projections, a scale of :math:`H^{-1/2}` (one over the root of the number of *heads*: a slip, kept for
    parity), a signed basis while it learns and its absolute value where it selects.

    Args:
        head_width: Channels of a head, d.
        heads: H, which only the scale of ``parity`` reads.
        num_tokens: Tokens that have a row of their own; ``None``: any number of tokens.
        rank: r; ``None``: a sixth of ``num_tokens``, as published, or 32.
        channels: c, to which queries and keys are projected; ``None``: no projection, or d / 2 with ``parity``.
        coefficients: Entries of a row of U that selection keeps; the others are 0 and the rest is not scaled up.
        coefficient_threshold: Keep the entries above this instead (released code: 0.05).
        basis_threshold: Entries of B up to this are 0 where it selects; ``None``: 0.02 with ``parity``, else 0. (0.02
            is four times an average weight at 197 tokens, and more than any at 16k.)
        scale: s; ``None``: see above.
        parity: The released behaviour.

    Raises:
        ArgumentError: If a number is out of range.
    """

    def __init__(
        self,
        head_width: int,
        heads: int,
        *,
        num_tokens: int | None = None,
        rank: int | None = None,
        channels: int | None = None,
        coefficients: int = 8,
        coefficient_threshold: float | None = None,
        basis_threshold: float | None = None,
        scale: float | None = None,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if parity and num_tokens is None:
            raise ArgumentError("parity=True needs num_tokens: the released predictor has a row for each position")
        if rank is None:
            rank = _FREE_RANK if num_tokens is None else max(1, num_tokens // 6)
        if channels is None and parity:
            channels = max(1, head_width // 2)
        for name, number in (("num_tokens", num_tokens), ("rank", rank), ("channels", channels)):
            if number is not None and number < 1:
                raise ArgumentError(f"{name} must be positive, got {number}")
        if coefficients < 1:
            raise ArgumentError(f"coefficients must be positive, got {coefficients}")
        self.num_tokens, self.rank, self.channels, self.parity = num_tokens, rank, channels or head_width, parity
        self.coefficients, self.coefficient_threshold = coefficients, coefficient_threshold
        self.basis_threshold = (0.02 if parity else 0.0) if basis_threshold is None else basis_threshold
        self.scale = (heads**-0.5 if parity else self.channels**-0.5) if scale is None else scale
        self.query = nn.Linear(head_width, channels) if channels else nn.Identity()
        self.key = nn.Linear(head_width, channels) if channels else nn.Identity()
        rows = self.channels if num_tokens is None else num_tokens
        self.down = nn.Parameter(torch.empty(rows, rank))
        self.up = nn.Parameter(torch.empty(rows, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for linear in (self.query, self.key):
            if isinstance(linear, nn.Linear):
                nn.init.trunc_normal_(linear.weight, std=_DEVIATION)
                nn.init.zeros_(linear.bias)
        # Maps of features are as any linear map; rows of positions as published.
        deviation = _DEVIATION if self.num_tokens is not None else self.channels**-0.5
        nn.init.trunc_normal_(self.down, std=deviation)
        nn.init.trunc_normal_(self.up, std=deviation)

    def forward(
        self, q: Tensor, k: Tensor, graph: TokenGraph, *, tokens: Tensor | None = None, select: bool = False
    ) -> Factors:
        """The factors, in float32 for half types.

        Args:
            q: ``[..., T, H, d]``.
            k: ``[..., S, H, d]``.
            graph: Candidate edges, which says what belongs together (members).
            tokens: int64 ``[..., N]``: which of the ``num_tokens`` each row is, where some were pruned.
            select: As they are used to select: with thresholds. Else as they learn.

        Raises:
            ArgumentError: If the predictor has rows for another number of tokens.
        """
        with torch.autocast(q.device.type, enabled=False):  # half types would tie many scores
            wide = torch.promote_types(q.dtype, torch.float32)
            q, k = self._project(self.query, q, wide), self._project(self.key, k, wide)
            if self.num_tokens is None:
                coefficients, basis = self._free(q, k, graph)
            else:
                down, up = self._positions(graph, tokens, wide)
                landmarks = torch.einsum("...nhc,...nr->...hrc", k, down)
                coefficients = self._softmax(torch.einsum("...nhc,...hrc->...nhr", q, landmarks))
                basis = self._basis(up, select).unsqueeze(-2)
            if select:
                coefficients = self._largest(coefficients)
                basis = basis.where(basis > self.basis_threshold, 0.0)
            return Factors(coefficients, basis.expand(*k.shape[:-1], self.rank))

    @staticmethod
    def _project(linear: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        if not isinstance(linear, nn.Linear):
            return x
        return F.linear(x, linear.weight.to(dtype), linear.bias.to(dtype))

    def _softmax(self, products: Tensor) -> Tensor:
        return (self.scale * products).softmax(-1)

    def _positions(self, graph: TokenGraph, tokens: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows of the learned maps for the tokens that are there, ``[..., N, r]``."""
        if graph.target_ptr is not None:
            raise ArgumentError(
                "a predictor with num_tokens knows positions, and the members of a batch have none in common; make the "
                "mechanism with num_tokens=None"
            )
        if tokens is not None:
            return self.down[tokens].to(dtype), self.up[tokens].to(dtype)
        if graph.num_tokens != self.num_tokens:
            raise ArgumentError(
                f"this predictor was made for num_tokens={self.num_tokens}, got {graph.num_tokens} tokens; "
                "num_tokens=None makes one for any number"
            )
        return self.down.to(dtype), self.up.to(dtype)

    def _basis(self, up: Tensor, select: bool) -> Tensor:
        if self.parity:
            return up.abs() if select else up
        # A rectifier whose corner is rounded on the scale of an average weight, so that no entry dies.
        return F.softplus(up, beta=float(self.num_tokens or 1))

    def _free(self, q: Tensor, k: Tensor, graph: TokenGraph) -> tuple[Tensor, Tensor]:
        """Both factors from the tokens' own features."""
        logits = k @ torch.cat([self.down, self.up], 1).to(k.dtype)
        if graph.target_ptr is None:
            down, up = logits.softmax(-3).chunk(2, -1)
            landmarks = torch.einsum("...nhr,...nhc->...hrc", down, k)
            return self._softmax(torch.einsum("...nhc,...hrc->...nhr", q, landmarks)), up
        # One copy, whatever the leading dimensions of the graph: those of the rows are taken along like heads.
        asking = Members(graph.target_ptr, graph.num_targets, 1, graph.device)
        members = Members(graph.source_ptr, graph.num_sources, 1, graph.device)
        others = *k.shape[:-3], k.shape[-2]
        # Tokens first, everything else heads: [N, L * H, ...].
        logits, q, k = (x.movedim(-3, 0).flatten(1, -2) for x in (logits, q, k))
        weights = (logits - members.spread(members.max(logits))).exp()
        down, up = (weights / members.spread(members.sum(weights))).chunk(2, -1)
        landmarks = members.sum((down.unsqueeze(-1) * k.unsqueeze(-2)).flatten(2))
        at_query = asking.spread(landmarks).unflatten(2, (self.rank, self.channels))
        found = self._softmax((at_query @ q.unsqueeze(-1)).squeeze(-1)), up
        coefficients, basis = (x.unflatten(1, others).movedim(0, -3) for x in found)
        return coefficients, basis

    def _largest(self, coefficients: Tensor) -> Tensor:
        """The largest entries of each row, the others 0."""
        if self.coefficient_threshold is not None:
            return coefficients.where(coefficients > self.coefficient_threshold, 0.0)
        if self.coefficients >= self.rank:
            return coefficients
        values, places = coefficients.topk(self.coefficients, -1)
        return torch.zeros_like(coefficients).scatter(-1, places, values)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"num_tokens={self.num_tokens}, rank={self.rank}, channels={self.channels}, parity={self.parity}"
