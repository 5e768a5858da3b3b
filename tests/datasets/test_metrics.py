"""Metrics against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn_datasets.metrics import (
    average_precision,
    balanced_accuracy,
    batch_mean_balanced_accuracy,
    sbm_class_weights,
)


def test_balanced_accuracy_is_the_mean_recall():
    target = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    preds = torch.tensor([0, 0, 0, 1, 1, 0, 2])
    assert balanced_accuracy(preds, target) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_balanced_accuracy_of_scores_takes_the_largest():
    scores = torch.tensor([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0]])
    assert balanced_accuracy(scores, torch.tensor([1, 0, 0])) == pytest.approx((1 + 1 / 2) / 2)


def test_balanced_accuracy_leaves_out_classes_that_do_not_occur():
    target, preds = torch.tensor([0, 0, 3]), torch.tensor([0, 1, 3])
    assert balanced_accuracy(preds, target, num_classes=6) == pytest.approx((1 / 2 + 1) / 2)


def test_chance_level_of_a_constant_answer():
    target = torch.arange(6).repeat(10)
    assert balanced_accuracy(torch.zeros_like(target), target) == pytest.approx(1 / 6)


def test_batch_mean_differs_from_the_global_metric_and_counts_predicted_but_absent_classes():
    targets = [torch.tensor([0, 0, 1]), torch.tensor([0, 0])]
    preds = [torch.tensor([0, 1, 1]), torch.tensor([0, 1])]
    # (1/2 + 1) / 2 in the first batch, (1/2 + 0) / 2 in the second.
    assert batch_mean_balanced_accuracy(preds, targets) == pytest.approx((0.75 + 0.25) / 2)
    assert balanced_accuracy(torch.cat(preds), torch.cat(targets)) == pytest.approx((2 / 4 + 1) / 2)


def test_average_precision_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, torch.tensor([1.0, 0.0, 1.0, 0.0])) == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_of_equal_scores_is_the_share_of_positives():
    assert average_precision(torch.zeros(8), torch.tensor([1.0] * 3 + [0.0] * 5)) == pytest.approx(3 / 8)


def test_average_precision_skips_unlabelled_entries_and_one_sided_tasks():
    nan = float("nan")
    target = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, nan], [nan, 1.0, 0.0], [1.0, 1.0, 1.0]])
    scores = torch.tensor([[4.0, 1.0, 1.0], [3.0, 2.0, 9.0], [9.0, 3.0, 3.0], [1.0, 4.0, 2.0]])
    first = (1 + 2 / 3) / 2  # ranks 1 and 3 of three labelled entries
    third = 1 / 2  # rank 2 of three labelled entries; the second task has no negative
    assert average_precision(scores, target) == pytest.approx((first + third) / 2)


def test_average_precision_equals_scikit_learn():
    reference = pytest.importorskip("sklearn.metrics").average_precision_score
    scores = torch.randint(0, 20, (200, 4)).float()
    target = (torch.rand(200, 4) < 0.3).float()
    expected = sum(reference(target[:, t], scores[:, t]) for t in range(4)) / 4
    assert average_precision(scores, target) == pytest.approx(expected, abs=1e-12)


def test_class_weights_are_the_share_of_the_others_and_zero_for_absent_classes():
    weights = sbm_class_weights(torch.tensor([0, 0, 0, 1]), 3)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [0.25, 0.75, 0.0]


def test_class_weights_leave_out_nodes_without_a_label_where_nobody_looks_at_them():
    y = torch.tensor([-100, 0, 0, -100, 0, 1])
    assert sbm_class_weights(y, 3, validate=False).tolist() == [0.25, 0.75, 0.0]
    assert sbm_class_weights(y[:1], 3, validate=False).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ArgumentError, match="y must lie in 0..2"):
        sbm_class_weights(y, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: balanced_accuracy(torch.zeros(3), torch.zeros(3, dtype=torch.long)),
        lambda: balanced_accuracy(torch.zeros(3, dtype=torch.long), torch.zeros(4, dtype=torch.long)),
        lambda: balanced_accuracy(torch.tensor([0, 5]), torch.tensor([0, 1]), num_classes=2),
        lambda: balanced_accuracy(torch.tensor([0, 1]), torch.tensor([0, -1])),
        lambda: batch_mean_balanced_accuracy([], []),
        lambda: average_precision(torch.zeros(3), torch.ones(3)),
        lambda: average_precision(torch.zeros(3), torch.ones(4)),
        lambda: average_precision(torch.tensor([0.0, float("nan")]), torch.tensor([0.0, 1.0])),
        lambda: sbm_class_weights(torch.tensor([0, 3]), 3),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ArgumentError):
        call()
