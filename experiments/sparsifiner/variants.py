"""What is compared: how keys are chosen, how many, and what that costs."""

from __future__ import annotations

from typing import Any, NamedTuple

from graphattn.insight.macs import AttentionMacs, attention_macs, keys_of, network_macs, pruned_tokens, sparsifiner_macs

__all__ = ["BUDGETS", "KEEPS", "KINDS", "PREDICTORS", "Budget", "Variant", "variants_of"]

KEEPS = (0.5, 0.25, 0.1)
PREDICTORS: dict[str, dict[str, Any]] = {
    "sparsifiner": {},
    "sparsifiner-free": {"num_tokens": None},
    "sparsifiner-parity": {"parity": True},
}
"""Predictors that stage 1 trains: a row for each position, from features alone, and the released code's."""
FIXED = ("oracle", "window", "random")
EQUAL_COST = {"window-equal-macs": "window", "random-equal-macs": "random"}
"""Graphs that cost nothing to find, with so many more keys that attention costs what Sparsifiner's does."""
KINDS = (*PREDICTORS, *FIXED, *EQUAL_COST, "token-pruning")


class Budget(NamedTuple):
    """What the stages after the teacher get."""

    reconstruction_epochs: int
    predictor_lr: float
    distillation_epochs: int
    lr: float


BUDGETS = {
    "digits": Budget(4, 1e-2, 3, 1e-3),
    "mnist": Budget(2, 3e-3, 2, 2e-4),
    "cifar10": Budget(5, 3e-3, 5, 2e-4),
}


class Variant(NamedTuple):
    """One sparse network.

    Args:
        name: Kind and keep rate.
        kind: One of :data:`KINDS`, or ``"dense"``.
        keep: Share of the keys that each patch reads; for token pruning and graphs of equal cost, of the variant whose
            cost it has.
        options: ``attention_options`` of the network.
        token_keep: Of :class:`~graphattn.models.image.PrunedVisionTransformer`; ``None``: no pruning.
        attention: Multiply-accumulates of attention, predictor included.
        network: Of attention, projections and feed-forward networks.
        reads: In words, what a patch reads.
    """

    name: str
    kind: str
    keep: float
    options: dict[str, Any]
    token_keep: float | None
    attention: float
    network: float
    reads: str


def variants_of(network: dict[str, Any], keeps: tuple[float, ...] = KEEPS) -> list[Variant]:
    """All variants of a vision transformer with one class token, given its arguments; the dense one first."""
    side, patch = network["img_size"], network["patch_size"]
    n, width, heads, depth = 1 + (side // patch) ** 2, network["embed_dim"], network["num_heads"], network["depth"]
    shared = {"layers": depth, "mlp_ratio": network.get("mlp_ratio", 4.0)}

    def whole(found: AttentionMacs) -> tuple[float, float]:
        return found.total, network_macs(found, n, width, **shared)

    dense = attention_macs(n, width, layers=depth)
    found = [Variant("dense", "dense", 1.0, {}, None, *whole(dense), f"{n} of {n}")]
    for keep in keeps:
        # A basis without a threshold is full.
        full: dict[str, Any] = {"keep": keep, "layers": depth, "basis_density": 1.0}
        share = f"{keys_of(keep, n)} of {n}"
        for kind, predictor in PREDICTORS.items():
            if kind == "sparsifiner-parity" and keep != 0.25:
                continue
            mode: dict[str, Any] = {"mode": "code"} if kind == "sparsifiner-parity" else {}
            cost = sparsifiner_macs(n, width, heads, **full, **mode)
            if kind == "sparsifiner-free":  # two maps of c to r channels instead of rows of positions
                predictor = {**predictor, "predictor": {"rank": n // 6}}
                cost = cost._replace(projections=float(2 * n * width * (n // 6) * depth))
            found.append(Variant(f"{kind}-{keep}", kind, keep, {**predictor, "keep": keep}, None, *whole(cost), share))
        fixed = attention_macs(n, width, layers=depth, keys=keys_of(keep, n), full_rows=1)
        for kind in FIXED:
            options = {"selector": kind, "keep": keep}
            found.append(Variant(f"{kind}-{keep}", kind, keep, options, None, *whole(fixed), share))
        goal = sparsifiner_macs(n, width, heads, **full).total
        keys, equal = _equal_cost(n, width, depth, goal)
        for kind, selector in EQUAL_COST.items():
            options = {"selector": selector, "keys": keys}
            found.append(Variant(f"{kind}-{keep}", kind, keep, options, None, *whole(equal), f"{keys} of {n}"))
        token_keep, tokens = _pruning(n, depth, width, goal)
        pruned = attention_macs(tokens, width)
        cost_of_all = network_macs(pruned, tokens, width, mlp_ratio=shared["mlp_ratio"])
        reads = f"all of {tokens[0]} to {tokens[-1]}"
        found.append(
            Variant(f"token-pruning-{keep}", "token-pruning", keep, {}, token_keep, pruned.total, cost_of_all, reads)
        )
    return found


def _equal_cost(n: int, width: int, depth: int, goal: float) -> tuple[int, AttentionMacs]:
    """The most keys of a patch whose attention costs no more than ``goal``, and what it costs."""
    costs = [attention_macs(n, width, layers=depth, keys=keys, full_rows=1) for keys in range(1, n + 1)]
    keys = max(1, sum(cost.total <= goal for cost in costs))
    return keys, costs[keys - 1]


def _pruning(n: int, depth: int, width: int, goal: float) -> tuple[float, list[int]]:
    """The keep rate whose attention costs most within ``goal``, and the tokens of each layer."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = attention_macs(pruned_tokens(n, middle, depth, _places(depth)), width).total <= goal
        low, high = (middle, high) if fits else (low, middle)
    rate = max(low, 1e-6)
    return rate, pruned_tokens(n, rate, depth, _places(depth))


def _places(depth: int) -> list[int]:
    """Where :class:`~graphattn.models.image.PrunedVisionTransformer` prunes."""
    return sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3)})
