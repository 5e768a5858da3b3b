"""What a score is, and the table of scores that have a name."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.registry import Registry

__all__ = ["SCORES", "Score", "resolve_score"]


class Score(nn.Module):
    """One number for each edge and head, from the query at its target and the key at its source.

    A subclass implements :meth:`edge`. Its parameters may have a head dimension: ``[H, D]`` broadcasts.
    """

    fused: ClassVar[str | None] = None
    """Name under which the attention kernels know this score: ``"dot"``, ``"additive"`` (see :meth:`additive`), or
    ``None``: it is computed edge by edge."""

    of_product: ClassVar[bool] = False
    """Whether the score is :meth:`from_product` of the dot product of query and key (times the edge's own row, channel
    by channel): then nothing of the size of edges times channels is made."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "edge" in cls.__dict__ and "fused" not in cls.__dict__:
            cls.fused = None  # another formula than that of the class it derives from
        if "edge" in cls.__dict__ and "of_product" not in cls.__dict__:
            cls.of_product = False

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        """The score of each edge, before scale, bias and clamp.

        Args:
            q_target: ``[E, ..., H, D]``, the query at the target of each edge.
            k_source: ``[E, ..., H, D]``, the key at the source of each edge.
            edge: ``[E, ..., H, D]`` or ``None``: the edge's own row (``edge_gate`` of :func:`~graphattn.attend`).

        Returns:
            ``[E, ..., H]``.
        """
        raise NotImplementedError

    def from_product(self, product: Tensor) -> Tensor:
        """The score of each edge from its dot product, before scale, where :attr:`of_product` says that it is one."""
        raise NotImplementedError

    def additive(self) -> tuple[Tensor | None, float | None]:
        """The parts of a score :math:`\\sum_d a_{hd} \\operatorname{LeakyReLU}(q_{thd} + k_{shd} + g_{ehd})`.

        Returns:
            The vector a ``[H, D]`` (``None``: ones) and the negative slope, of a score whose ``fused`` is
            ``"additive"``; of others, ``(None, None)``.
        """
        return None, None

    def default_scale(self, channels: int) -> float:
        """The factor on the score where the caller gives none."""
        return 1.0

    def forward(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None = None) -> Tensor:
        """Calls :meth:`edge`."""
        return self.edge(q_target, k_source, edge)


# Filled where this room is imported: torch.compile cannot trace the import of a lazy entry.
SCORES: Registry[type[Score]] = Registry("score")
_MADE: dict[str, Score] = {}  # by name, once: making a module takes as long as a small call of attend


def resolve_score(score: str | Score) -> Score:
    """A score from its name (made without arguments) or as it is.

    Raises:
        ArgumentError: If no score has this name, or the score has parameters and must be made by the caller.
        ArgumentTypeError: If it is neither a name nor a score.
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, str):
        if torch.compiler.is_compiling():  # would compile again when the table grows
            return _make(score)
        if score not in _MADE:
            _MADE[score] = _make(score)
        return _MADE[score]
    raise ArgumentTypeError(f"score must be a name, a Score or an edge tensor, got {type(score).__name__}")


def _make(name: str) -> Score:
    kind = SCORES.get(name)
    try:
        return kind()
    except TypeError:
        raise ArgumentError(
            f"score {name!r} has parameters of its own: make a {kind.__name__}{inspect.signature(kind)} and pass it"
        ) from None
