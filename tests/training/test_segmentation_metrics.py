"""Figures of segmentation: equal to PySODMetrics', to DAVIS' boundary F, to SciPy's components, to AP by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.training.segmentation_metrics import (
    BettiError,
    BoundaryF,
    EMeasure,
    FMeasure,
    InstanceAP,
    MapError,
    SMeasure,
)

SALIENCY: dict[str, Any] = {
    "f_max": lambda **o: FMeasure("max", **o),
    "f_mean": lambda **o: FMeasure("mean", **o),
    "f_adaptive": lambda **o: FMeasure("adaptive", **o),
    "mae": MapError,
    "s": SMeasure,
    "e_max": lambda **o: EMeasure("max", **o),
    "e_mean": lambda **o: EMeasure("mean", **o),
    "e_adaptive": lambda **o: EMeasure("adaptive", **o),
}


def images(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Discs and rings with a wavy saliency, from formulas alone; then no mask, all mask, no map, one pixel."""
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(41.0), indexing="ij")
    y, x = y.double(), x.double()
    maps, masks = [], []
    for i in range(6):
        r = ((y - 12 - i) ** 2 + (x - 20 + 2 * i) ** 2).sqrt()
        mask = (r < 9) & (r > (4 if i % 2 else -1))
        wave = 0.5 + 0.5 * torch.sin(0.7 * x + 0.31 * i * y)
        maps.append((0.25 + 0.5 * mask.double() + 0.4 * (wave - 0.5) - 0.03 * i).clamp(0, 1))
        masks.append(mask)
    maps[1] = (maps[1] * 255).round() / 255
    wave = 0.5 + 0.5 * torch.sin(0.4 * x + 0.9 * y)
    pixel = torch.zeros(30, 41, dtype=torch.bool)
    pixel[5, 7] = True
    maps += [wave, wave, torch.zeros_like(wave), wave]
    masks += [torch.zeros_like(pixel), torch.ones_like(pixel), masks[0], pixel]
    return torch.stack(maps).to(dtype), torch.stack(masks)


def figures(prediction: Tensor, mask: Tensor, **options: Any) -> dict[str, float]:
    """In two batches."""
    found = {}
    for name, make in SALIENCY.items():
        metric = make(**options)
        metric.update(prediction[:4], mask[:4])
        metric.update(prediction[4:, None], mask[4:, None].float())
        found[name] = metric.compute().item()
    return found


def test_figures_that_pysodmetrics_gave() -> None:
    """py_sod_metrics 1.6.2 (step with normalize=False) on these images."""
    expected = {
        "f_max": 0.6740005,
        "f_mean": 0.4118050,
        "f_adaptive": 0.5767526,
        "mae": 0.2963757,
        "s": 0.6299378,
        "e_max": 0.7417661,
        "e_mean": 0.5041377,
        "e_adaptive": 0.6962945,
    }
    assert figures(*images()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_to_pysodmetrics(dtype: torch.dtype, normalize: bool) -> None:
    peer = pytest.importorskip("py_sod_metrics")
    prediction, mask = images(dtype)
    stretched = prediction
    if normalize:
        low, high = prediction.amin((1, 2), keepdim=True), prediction.amax((1, 2), keepdim=True)
        stretched = torch.where(high > low, (prediction - low) / (high - low), prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its newer class of the same figures
        f, mae, s, e = peer.Fmeasure(), peer.MAE(), peer.Smeasure(), peer.Emeasure()
    for p, m in zip(stretched.numpy(), mask.numpy(), strict=True):
        for metric in (f, mae, s, e):
            metric.step(p, m, normalize=False)
    fm, em = f.get_results()["fm"], e.get_results()["em"]
    expected = {
        "f_max": fm["curve"].max(),
        "f_mean": fm["curve"].mean(),
        "f_adaptive": fm["adp"],
        "mae": mae.get_results()["mae"],
        "s": s.get_results()["sm"],
        "e_max": em["curve"].max(),
        "e_mean": em["curve"].mean(),
        "e_adaptive": em["adp"],
    }
    assert figures(prediction, mask, normalize=normalize) == pytest.approx(expected, abs=1e-6)


def test_perfect_and_wrong_maps() -> None:
    mask = images()[1][:4]
    right, wrong = mask.double(), (~mask).double()
    best = figures(right.repeat(2, 1, 1), mask.repeat(2, 1, 1))
    assert best.pop("mae") == 0 and best.pop("f_mean") == pytest.approx(1.0, abs=0.01)
    assert best.pop("e_mean") > 0.99 and best == pytest.approx(dict.fromkeys(best, 1.0), abs=1e-3)
    assert MapError()(wrong, mask) == 1 and FMeasure("adaptive")(wrong, mask) == 0


def test_a_mask_at_the_last_column_has_a_figure() -> None:
    """Two of the four regions are empty; PySODMetrics gives NaN."""
    mask = torch.zeros(1, 8, 9, dtype=torch.bool)
    mask[0, 3:6, -1] = True
    assert 0.5 < SMeasure()(mask.float(), mask) <= 1


def test_beta_squared_is_03() -> None:
    """P = 1/2, R = 1: F = 1.3 * 0.5 / (0.15 + 1)."""
    mask, prediction = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    mask[0, 0], prediction[0, :2] = 1, 1
    for how in ("max", "adaptive"):
        assert FMeasure(how)(prediction, mask) == pytest.approx(1.3 * 0.5 / 1.15)


# --- masks ----------------------------------------------------------------------------------------------------


def davis_f(a: np.ndarray, b: np.ndarray, radius: int) -> float:
    """Boundary F as the code of DAVIS 2017 has it, with SciPy's dilation."""

    def edge(seg: np.ndarray) -> np.ndarray:
        e, s, se = np.zeros_like(seg), np.zeros_like(seg), np.zeros_like(seg)
        e[:, :-1], s[:-1], se[:-1, :-1] = seg[:, 1:], seg[1:], seg[1:, 1:]
        found = seg ^ e | seg ^ s | seg ^ se
        found[-1], found[:, -1], found[-1, -1] = seg[-1] ^ e[-1], seg[:, -1] ^ s[:, -1], 0
        return found

    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    a, b = edge(a), edge(b)
    if not a.any() or not b.any():
        return float(not a.any() and not b.any())
    precision = (a & ndimage.binary_dilation(b, disk)).sum() / a.sum()
    recall = (b & ndimage.binary_dilation(a, disk)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.008, 0.05, 2])
def test_boundary_f_is_that_of_davis(tolerance: float) -> None:
    _, mask = images()
    prediction = mask.roll(2, 2).double() * 0.8
    prediction[2] = 0
    radius = int(tolerance) if tolerance >= 1 else math.ceil(tolerance * math.hypot(30, 41))
    pairs = zip((prediction > 0.5).numpy(), mask.numpy(), strict=True)
    expected = np.mean([davis_f(a, b, radius) for a, b in pairs])
    metric = BoundaryF(tolerance)
    metric.update(prediction[:5], mask[:5])
    metric.update(prediction[5:] > 0.5, mask[5:])
    assert metric.compute() == pytest.approx(expected)
    assert BoundaryF(tolerance)(mask.float(), mask) == 1


@pytest.mark.parametrize("neighbours", [4, 8])
def test_betti_error_counts_scipys_components(neighbours: int) -> None:
    a, b = torch.rand(4, 20, 23) < 0.3, torch.rand(4, 20, 23) < 0.6
    structure = np.ones((3, 3)) if neighbours == 8 else None
    counts = [[ndimage.label(m, structure)[1] for m in masks.numpy()] for masks in (a, b)]
    expected = np.abs(np.subtract(*counts)).mean()
    assert BettiError(neighbours)(a, b) == pytest.approx(expected)
    assert BettiError(neighbours)(a.float() * 0.9, a) == 0
    one = torch.zeros(1, 3, 3)
    one[0, 1, 1] = 1
    assert BettiError(neighbours)(one, torch.zeros(1, 3, 3)) == 1  # a single pixel is a component


# --- instances ------------------------------------------------------------------------------------------------


def squares(*corners: tuple[int, int, int], size: int = 24) -> Tensor:
    """Label i + 1 for a square at (y, x) with this side."""
    labels = torch.zeros(size, size, dtype=torch.int64)
    for i, (y, x, side) in enumerate(corners):
        labels[y : y + side, x : x + side] = i + 1
    return labels


def test_average_precision_by_hand() -> None:
    """Two true of three found, ranked right, wrong, right; the third has an IoU of 25 / 36 = 0.69."""
    ids = squares((0, 0, 6), (0, 10, 6), (10, 0, 6))[None]
    labels = squares((0, 0, 6), (18, 18, 4), (10, 0, 5))[None]
    saliency = torch.tensor([0.0, 0.9, 0.8, 0.7])[labels]
    metric = InstanceAP()
    metric.update(labels, ids * 70_000, saliency)
    got = metric.compute()
    assert got["ap50"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert got["ap70"] == pytest.approx(1 / 3)
    assert got["threat50"] == pytest.approx(2 / 4) and got["threat70"] == pytest.approx(1 / 5)
    assert got["ap"] == pytest.approx((4 * (1 / 3 + 2 / 9) + 6 / 3) / 10)  # 0.5 to 0.65, 0.7 to 0.95
    alike = InstanceAP()
    alike.update(labels.int(), ids)
    assert alike.compute()["ap50"] == pytest.approx(2 / 3 * 2 / 3)  # one threshold: precision times recall


def test_iou_of_exactly_the_threshold_is_not_enough() -> None:
    metric = InstanceAP()
    metric.update(squares((0, 0, 2))[None] * (torch.arange(24) < 1), squares((0, 0, 2))[None])
    assert metric.compute()["ap50"] == 0


def test_average_precision_of_random_maps() -> None:
    """Against a loop over all pairs, over images and batches; labels with gaps."""
    random = torch.Generator().manual_seed(3)
    labels, ids = torch.zeros(2, 5, 24, 24, dtype=torch.int64)
    for i in range(5):
        for n in range(6):
            y, x, side = (torch.randint(high, (), generator=random).item() for high in (18, 18, 6))
            ids[i, y : y + side, x : x + side] = 3 * n + 1
            dy, dx = (torch.randint(2, (), generator=random).item() for _ in range(2))
            labels[i, y + dy : y + dy + side, x + dx : x + dx + side] = 2 * n + 1
    saliency = torch.rand(5, 24, 24, generator=random)
    metric = InstanceAP((0.5, 0.6))
    metric.update(labels[:2], ids[:2], saliency[:2])
    metric.update(labels[2:], ids[2:], saliency[2:])
    got = metric.compute()
    truths = sum(len(x.unique()) - 1 for x in ids)
    for threshold in (0.5, 0.6):
        ranked = []
        for found, true, s in zip(labels, ids, saliency, strict=True):
            for n in found.unique()[1:].tolist():
                a = found == n
                ious = [((a & (true == t)).sum() / (a | (true == t)).sum()).item() for t in true.unique()[1:].tolist()]
                ranked.append((s[a].double().mean().item(), max(ious) > threshold))
        right = np.array([ok for _, ok in sorted(ranked, reverse=True)])
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        assert 0 < right.sum() < len(right)
        assert got[f"ap{round(100 * threshold)}"] == pytest.approx((envelope * right).sum() / truths)
        expected = right.sum() / (len(right) + truths - right.sum())
        assert got[f"threat{round(100 * threshold)}"] == pytest.approx(expected)


def test_nothing_found_and_nothing_there() -> None:
    none, some = torch.zeros(1, 24, 24, dtype=torch.int64), squares((0, 0, 5))[None]
    metric = InstanceAP()
    metric.update(none, some)
    assert metric.compute()["ap50"] == 0 and metric.compute()["threat50"] == 0
    metric = InstanceAP()
    metric.update(some, none)
    assert metric.compute()["ap50"].isnan() and metric.compute()["threat50"] == 0
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert InstanceAP().compute()["ap"].isnan()


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    prediction, mask = images(torch.float32)
    for make in (*SALIENCY.values(), BoundaryF, BettiError):
        here, there = make(), make().cuda()
        here.update(prediction, mask)
        there.update(prediction.cuda(), mask.cuda())
        torch.testing.assert_close(there.compute().cpu(), here.compute())
    labels, ids = torch.randint(4, (2, 3, 24, 24)).kron(torch.ones(3, 3, dtype=torch.int64))
    here, there = InstanceAP(), InstanceAP().cuda()
    here.update(labels, ids, labels / 4)
    there.update(labels.cuda(), ids.cuda(), labels.cuda() / 4)
    for name, value in here.compute().items():
        torch.testing.assert_close(there.compute()[name].cpu(), value)


def test_bad_arguments() -> None:
    x = torch.zeros(2, 4, 5)
    with pytest.raises(ArgumentError, match=r"prediction and mask must both be .* got \[2, 4, 5\] and \[2, 5, 4\]"):
        FMeasure().update(x, x.mT)
    with pytest.raises(ArgumentTypeError, match="prediction must be a floating tensor of values in 0..1, got"):
        SMeasure().update(x.long(), x)
    with pytest.raises(ArgumentError, match="how must be 'max', 'mean' or 'adaptive', got 'best'"):
        EMeasure("best")
    with pytest.raises(ArgumentError, match="tolerance must be positive, got 0"):
        BoundaryF(0)
    with pytest.raises(ArgumentError, match="neighbours must be 4 or 8, got 6"):
        BettiError(6)
    with pytest.raises(ArgumentError, match="thresholds must be at least 0.5"):
        InstanceAP((0.3,))
    with pytest.raises(ArgumentTypeError, match="labels must be an integer tensor, got torch.float32"):
        InstanceAP().update(x, x.long())
    with pytest.raises(ArgumentError, match=r"labels and ids must both be \[B, H, W\]"):
        InstanceAP().update(x.long(), x.long().mT)
    with pytest.raises(ArgumentError, match=r"saliency must be \[2, 4, 5\] as labels, got \[2, 5, 4\]"):
        InstanceAP().update(x.long(), x.long(), x.mT)
