"""Multiply-accumulates of attention, counted exactly: what a sparse graph saves, and what its predictor costs.

The papers on sparse vision transformers print these as "MFLOPs" of "MHSA": products of queries and keys and of weights
and values, and the predictor; the projections of queries, keys, values and outputs and the feed-forward networks are
left out. :func:`network_macs` adds them. Softmax, norms and the selection itself are not multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from graphattn.errors import ArgumentError
from graphattn.graph.subsample import count_kept

__all__ = ["AttentionMacs", "attention_macs", "keys_of", "network_macs", "pruned_tokens", "sparsifiner_macs"]

_DENSITY = 0.698


class AttentionMacs(NamedTuple):
    """Multiply-accumulates of attention in one layer, or the sum over layers.

    Args:
        scores: Of queries and keys.
        values: Of weights and values.
        projections: Of the predictor's own projections of queries and keys.
        landmarks: Of its landmarks with the keys (:math:`W_\\downarrow^\\top K`).
        coefficients: Of queries with landmarks.
        product: Of coefficients with the basis.
    """

    scores: float
    values: float
    projections: float = 0.0
    landmarks: float = 0.0
    coefficients: float = 0.0
    product: float = 0.0

    @property
    def predictor(self) -> float:
        """What the choice costs."""
        return self.projections + self.landmarks + self.coefficients + self.product

    @property
    def total(self) -> float:
        """Everything."""
        return sum(self)

    def __add__(self, other: object) -> AttentionMacs:  # type: ignore[override]
        if not isinstance(other, AttentionMacs):
            return NotImplemented
        return AttentionMacs(*(a + b for a, b in zip(self, other, strict=True)))


def keys_of(keep: float, tokens: int) -> int:
    """b: keys of a query at a keep rate, rounded up.

    Raises:
        ArgumentError: If ``keep`` is out of range.
    """
    if not 0.0 < keep <= 1.0:
        raise ArgumentError(f"keep must be in (0, 1], got {keep}")
    return count_kept(tokens, keep)


def attention_macs(
    tokens: int | Sequence[int], width: int, *, layers: int = 1, keys: int | None = None, full_rows: int = 0
) -> AttentionMacs:
    """Attention without a predictor: dense, or on any graph of ``keys`` in-edges for each token.

    Args:
        tokens: n, or one for each layer (tokens that were pruned do not count).
        width: Channels of all heads together.
        layers: Layers, where ``tokens`` is one number.
        keys: Sources that a token reads; ``None``: all.
        full_rows: Tokens that read all (class token).

    Example:
        >>> round(attention_macs(197, 384, layers=12).total / 1e6, 1)  # DeiT-S
        357.7
    """
    total = AttentionMacs(0.0, 0.0)
    for n in _by_layer(tokens, layers):
        b = n if keys is None else min(keys, n)
        pairs = full_rows * n + (n - full_rows) * b
        total = total + AttentionMacs(pairs * width, pairs * width)
    return total


def sparsifiner_macs(
    tokens: int | Sequence[int],
    width: int,
    heads: int,
    *,
    keep: float | None = None,
    keys: int | None = None,
    layers: int = 1,
    rank: int | None = None,
    channels: int | None = None,
    coefficients: int = 8,
    basis_density: float = _DENSITY,
    full_rows: int = 1,
    mode: Literal["paper", "code"] = "paper",
    block: int = 1,
) -> AttentionMacs:
    """Sparsifiner's attention: the kept pairs, and the predictor.

    ``mode="paper"`` is the diagram of the paper, with all channels of a head and no projections, and meets the
    published column of DeiT-S (75.27 M + 1.8065 M for each key, fitted by us to a table that the authors show as an
    image) at a basis density of 0.698. That density is fitted, not published; without the class token's full row it
    would be 0.78.

    Other rows of the tables are not met at that density, which is one of a trained network's. LV-ViT-S, 16 layers, keep
    0.5, 0.25 and 0.1: 338.8, 220.8 and 148.6 M are counted where 339.7, 221.7 and 149.5 are printed, 0.9 too few each;
    at 0.729, fitted to them, all three are within 0.05. DeiT-S with token pruning at 0.7 and 0.5, keep 0.25: of the
    tokens that are left, 98.4 and 76.4 M are counted where 113.3 and 86.6 are printed (14.9 and 10.2 too few); with 50
    keys throughout, 112.1 and 86.9 (1.2 too few, 0.3 too many), and no one density comes nearer to both than 0.72
    (at 0.738).

    ``mode="code"`` is the released code, which projects queries and keys to half of the channels first
    and so costs more. (It then computes all pairs and masks them: nothing of this is saved there.)

    Args:
        tokens: n, or one for each layer.
        width: Channels of all heads together.
        heads: H.
        keep: Share of the tokens that a token reads, rounded up. Give this or ``keys``.
        keys: b.
        layers: Layers, where ``tokens`` is one number.
        rank: r; ``None``: a sixth of the (first layer's) tokens.
        channels: c; ``None``: those of a head, or half of them in the code's mode.
        coefficients: Entries of a row of U that are kept.
        basis_density: Share of the basis that is not 0.
        full_rows: Tokens that read all and need no prediction (class token).
        mode: See above.
        block: Queries that share their keys: the product is then with the mean of their rows of U, whose entries all
            count.

    Raises:
        ArgumentError: If arguments contradict each other.

    Example:
        >>> [round(sparsifiner_macs(197, 384, 6, keys=b, layers=12).total / 1e6, 1) for b in (178, 99, 50, 20)]
        [396.8, 254.1, 165.6, 111.4]
    """
    if mode not in ("paper", "code"):
        raise ArgumentError(f"mode must be 'paper' or 'code', got {mode!r}")
    if (keep is None) == (keys is None):
        raise ArgumentError(f"give either keep or keys, got {keep} and {keys}")
    sizes = _by_layer(tokens, layers)
    r = max(1, sizes[0] // 6) if rank is None else rank
    per_head = width // heads
    c = channels or (per_head if mode == "paper" else per_head // 2)
    total = AttentionMacs(0.0, 0.0)
    for n in sizes:
        b = keys_of(keep, n) if keep is not None else keys
        rows = n - full_rows
        blocks, entries = (rows, min(coefficients, r)) if block == 1 else (-(-rows // block), r)
        total = total + attention_macs(n, width, keys=b, full_rows=full_rows)
        total = total + AttentionMacs(
            0.0,
            0.0,
            projections=heads * n * per_head * c * 2 if mode == "code" else 0.0,
            landmarks=heads * c * n * r,
            coefficients=heads * rows * c * r,
            product=heads * blocks * entries * n * basis_density,
        )
    return total


def pruned_tokens(tokens: int, keep: float, layers: int, after: Sequence[int], prefix: int = 1) -> list[int]:
    """Tokens of each layer under token pruning: ``keep ** i`` of the patches, rounded up, after its i-th place.

    Args:
        tokens: Of the first layer, prefix included.
        keep: Share that is kept each time.
        layers: Layers.
        after: Layers, from 0, after which is pruned (DynamicViT, EViT and the released Sparsifiner: 3, 6, 9 of 12).
        prefix: Tokens that always stay.
    """
    patches = tokens - prefix
    shares = [keep ** sum(n > place for place in after) for n in range(layers)]
    return [prefix + count_kept(patches, share, minimum=0) for share in shares]


def network_macs(
    attention: AttentionMacs, tokens: int | Sequence[int], width: int, *, layers: int = 1, mlp_ratio: float = 4.0
) -> float:
    """Attention and, of all layers, its four projections and the feed-forward network (not patches and classifier).

    Args:
        attention: Of all layers.
        tokens: n, or one for each layer.
        width: Channels of a token row.
        layers: Layers, where ``tokens`` is one number.
        mlp_ratio: Hidden channels of the feed-forward network as a multiple of ``width``.
    """
    return attention.total + sum(n * width * width * (4 + 2 * mlp_ratio) for n in _by_layer(tokens, layers))


def _by_layer(tokens: int | Sequence[int], layers: int) -> list[int]:
    return [tokens] * layers if isinstance(tokens, int) else list(tokens)
