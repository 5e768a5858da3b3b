"""OGB's metrics: the official Evaluator where ogb is installed, else ours, which tests hold equal to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.optional import available, require
from graphattn_datasets.metrics import average_precision, roc_auc
from graphattn_datasets.ogb.meta import OgbMeta, ogb_meta

__all__ = ["Evaluator", "hits_at", "import_ogb", "official_evaluator", "reciprocal_ranks"]

_MODULES = {"graph": "ogb.graphproppred", "node": "ogb.nodeproppred", "link": "ogb.linkproppred"}


class Evaluator:
    """The metric of an OGB data set, with the call of ogb's own ``Evaluator``.

    ``Evaluator("ogbg-molhiv").eval({"y_true": y, "y_pred": scores})`` gives ``{"rocauc": 0.77}``. Where the ogb
    package is installed it computes the figure, else this package does.

    Args:
        name: OGB's name; case and ``_`` for ``-`` do not matter.
        official: ``True``: only by the ogb package. ``False``: never. ``None``: where it is installed.

    Raises:
        ArgumentError: If OGB has no such data set.
        MissingPackageError: If ``official`` is true and ogb is not installed.
    """

    def __init__(self, name: str, official: bool | None = None) -> None:
        self.meta: OgbMeta = ogb_meta(name)
        self.name, self.eval_metric, self.num_tasks = self.meta.name, self.meta.metric, self.meta.num_tasks
        wanted = _can_be_official(self.meta) if official is None else official
        self._official = official_evaluator(self.name) if wanted else None

    @property
    def official(self) -> bool:
        """Whether the ogb package computes the figure."""
        return self._official is not None

    def eval(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The metric, by OGB's name, as a fraction or in the target's unit.

        Args:
            inputs: Graph and node sets: ``y_true``, ``y_pred`` ``[rows, tasks]`` (tensors or arrays; ``acc``: class
                ids; NaN: unlabelled). ``F1``: ``seq_ref``, ``seq_pred``, lists of lists of words. Link sets:
                ``y_pred_pos`` ``[P]`` and ``y_pred_neg`` ``[M]``, or ``[P, M]`` for ``mrr``.

        Returns:
            ``{"rocauc": value}``, say; ``mrr`` gives one value for each positive, as ogb does.

        Raises:
            ArgumentError: If something is missing or its shape does not fit.
        """
        names = _inputs_of(self.meta)
        absent = [name for name in names if name not in inputs]
        if absent:
            came = ", ".join(inputs) or "nothing"
            raise ArgumentError(
                f"{self.name} is scored by {self.eval_metric}, which needs {' and '.join(names)}; got {came}"
            )
        first, second = (inputs[name] for name in names)
        if self.eval_metric != "F1":
            first, second = torch.as_tensor(first), torch.as_tensor(second)
            _check(self.meta, names, first, second)
        if self._official is not None:
            return dict(self._official.eval(dict(zip(names, (first, second), strict=True))))
        return _compute(self.meta, first, second)


def official_evaluator(name: str) -> Any:
    """The ogb package's own ``Evaluator`` of a data set.

    Raises:
        MissingPackageError: If ogb is not installed; the text names the extra.
    """
    meta = ogb_meta(name)
    if meta.name == "pcqm4mv2":
        return import_ogb("ogb.lsc.pcqm4mv2").PCQM4Mv2Evaluator()
    return import_ogb(_MODULES[meta.kind]).Evaluator(meta.name)


def import_ogb(module: str) -> Any:
    """Import a part of ogb without the thread in which it asks the network for a newer version.

    Raises:
        MissingPackageError: If ogb is not installed.
    """
    with _no_version_check():
        return require(module, extra="ogb", purpose="the official OGB code")


def hits_at(k: int, positive: Tensor, negative: Tensor) -> Tensor:
    """Share of positives above the ``k``-th best of one pool of negatives, 1 if there are fewer (OGB's Hits@K).

    Args:
        k: Rank.
        positive: Scores ``[P]``.
        negative: Scores ``[M]``.

    Returns:
        A scalar in 0..1; ties with the ``k``-th negative do not count.
    """
    if negative.numel() < k:
        return torch.ones((), dtype=torch.float64, device=positive.device)
    return (positive > negative.topk(k).values[-1]).double().mean()


def reciprocal_ranks(positive: Tensor, negative: Tensor) -> Tensor:
    """One over the rank of each positive among its own negatives, ties in the middle (OGB's MRR is their mean).

    Args:
        positive: Scores ``[P]``.
        negative: Scores ``[P, M]``.

    Returns:
        Float32 ``[P]``.
    """
    return 1 / _ranks(positive, negative)


def _ranks(positive: Tensor, negative: Tensor) -> Tensor:
    better = (negative > positive.unsqueeze(1)).sum(1)
    not_worse = (negative >= positive.unsqueeze(1)).sum(1)
    return 0.5 * (better + not_worse) + 1


def _can_be_official(meta: OgbMeta) -> bool:
    # ogb.lsc imports its reader of molecules, which needs rdkit, with the evaluator.
    return available("ogb") and (meta.name != "pcqm4mv2" or available("rdkit"))


def _inputs_of(meta: OgbMeta) -> tuple[str, str]:
    if meta.kind == "link":
        return "y_pred_pos", "y_pred_neg"
    return ("seq_ref", "seq_pred") if meta.metric == "F1" else ("y_true", "y_pred")


def _check(meta: OgbMeta, names: tuple[str, str], first: Tensor, second: Tensor) -> None:
    shapes = f"{list(first.shape)} and {list(second.shape)}"
    if meta.kind == "link":
        wanted = "[P] and [P, M]" if meta.metric == "mrr" else "[P] and [M]"
        fits = first.dim() == 1 and second.dim() == (2 if meta.metric == "mrr" else 1)
        fits = fits and (meta.metric != "mrr" or len(first) == len(second))
    elif meta.name == "pcqm4mv2":
        wanted, fits = "[rows]", first.dim() == 1 and first.shape == second.shape
    else:
        wanted = f"[rows, {meta.num_tasks}]"
        fits = first.dim() == 2 and first.shape == second.shape and first.shape[1] == meta.num_tasks
    if not fits:
        raise ArgumentError(f"{names[0]} and {names[1]} of {meta.name} must be {wanted}, got {shapes}")


def _compute(meta: OgbMeta, first: Any, second: Any) -> dict[str, Any]:
    metric = meta.metric
    if metric == "F1":
        return _f1(first, second)
    if metric.startswith("hits@"):
        return {metric: float(hits_at(int(metric.removeprefix("hits@")), first, second))}
    if metric == "mrr":
        ranks = _ranks(first, second)
        return {**{f"hits@{k}_list": (ranks <= k).float() for k in (1, 3, 10)}, "mrr_list": 1 / ranks}
    if meta.kind == "link":
        target = torch.cat((torch.ones(len(first)), torch.zeros(len(second))))
        return {metric: float(roc_auc(torch.cat((first, second)), target))}
    by_name: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "rocauc": lambda y, p: roc_auc(p, y),
        "ap": lambda y, p: average_precision(p, y),
        "mae": lambda y, p: (y.double() - p.double()).abs().mean(),
        "rmse": lambda y, p: _task_mean(y, p, lambda a, b: (a - b).square().mean().sqrt()),
        "acc": lambda y, p: _task_mean(y, p, lambda a, b: (a == b).double().mean()),
    }
    return {metric: float(by_name[metric](first, second))}


def _task_mean(target: Tensor, preds: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over tasks of a figure of the labelled rows."""
    target, preds = target.double(), preds.double()
    columns = zip(target.unbind(1), preds.unbind(1), strict=True)
    return torch.stack([of(y[~y.isnan()], p[~y.isnan()]) for y, p in columns]).mean()


def _f1(references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    if len(references) != len(predictions):
        raise ArgumentError(f"seq_ref and seq_pred must be equally long, got {len(references)}, {len(predictions)}")
    rows = []
    for words, guess in zip(map(set, references), map(set, predictions), strict=True):
        right = len(words & guess)
        precision, recall = right / max(1, len(guess)), right / max(1, len(words))
        rows.append((precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0))
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("precision", "recall", "F1"), means, strict=True))


@contextmanager
def _no_version_check() -> Iterator[None]:
    before, setting = sys.modules.get("outdated"), os.environ.get("OUTDATED_IGNORE")
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules["outdated"]
        else:
            sys.modules["outdated"] = before
        if setting is None:
            os.environ.pop("OUTDATED_IGNORE", None)
