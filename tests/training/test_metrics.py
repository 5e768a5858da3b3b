from __future__ import annotations

import pytest
import torch

from graphattn.training.metrics import Accuracy, BalancedAccuracy, BatchMeanBalancedAccuracy, TaskMean
from graphattn_datasets.metrics import average_precision, balanced_accuracy, batch_mean_balanced_accuracy


def batches() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (5, 40, 17)
    return (
        [torch.randn(n, 4, generator=generator) for n in sizes],
        [torch.randint(0, 3, (n,), generator=generator) for n in sizes],  # class 3 never occurs
    )


def test_balanced_accuracy_by_hand():
    metric = BalancedAccuracy(2)
    predicted = torch.tensor([0, 0, 0, 1, 1])
    metric.update(torch.nn.functional.one_hot(predicted, 2).float(), torch.tensor([0, 0, 0, 0, 1]))
    assert metric.compute().item() == pytest.approx(100 * (3 / 4 + 1) / 2)


def test_balanced_accuracy_over_the_split_equals_the_function_and_not_the_mean_over_batches():
    scores, targets = batches()
    whole, mean = BalancedAccuracy(4), BatchMeanBalancedAccuracy(4)
    for score, target in zip(scores, targets, strict=True):
        whole.update(score, target)
        mean.update(score, target)
    assert whole.compute().item() == pytest.approx(
        100 * balanced_accuracy(torch.cat(scores), torch.cat(targets)).item()
    )
    assert mean.compute().item() == pytest.approx(100 * batch_mean_balanced_accuracy(scores, targets).item(), rel=1e-5)
    assert abs(whole.compute() - mean.compute()) > 0.1


def test_rows_without_a_label_count_nowhere():
    scores, targets = (torch.cat(parts) for parts in batches())
    labelled = torch.arange(len(targets)) % 3 > 0
    for metric in (Accuracy(), BalancedAccuracy(4), BatchMeanBalancedAccuracy(4)):
        expected = metric(scores[labelled], targets[labelled])
        metric.reset()
        assert torch.equal(metric(scores, targets.where(labelled, -100)), expected)


def test_accuracy_counts_rows_not_batches():
    scores, targets = batches()
    metric = Accuracy()
    for score, target in zip(scores, targets, strict=True):
        metric.update(score, target)
    expected = (torch.cat(scores).argmax(1) == torch.cat(targets)).float().mean()
    assert metric.compute().item() == pytest.approx(100 * expected.item())


def test_task_mean_skips_unlabelled_entries_and_one_sided_tasks():
    nan = float("nan")
    scores = torch.tensor([[3.0, 1, 0], [2, 2, 5], [1, 3, 1], [0, 9, 2]])
    target = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, nan, 1]])  # the last task has positives only
    metric = TaskMean("average_precision")
    metric.update(scores[:2], target[:2])
    metric.update(scores[2:], target[2:])
    # Task 0 ranks 1, 0, 1, 0: precision 1 and 2/3 at its positives. Task 1 ranks its two positives first.
    assert metric.compute().item() == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert metric.compute().item() == pytest.approx(average_precision(scores, target).item())
    auc = TaskMean("roc_auc")
    auc.update(scores, target)
    assert auc.compute().item() == pytest.approx(100 * (3 / 4 + 1) / 2)


def test_task_mean_keeps_the_order_of_large_logits():
    scores = torch.tensor([[40.0], [50.0], [60.0], [70.0]])
    metric = TaskMean("roc_auc")
    metric.update(scores / 2, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))  # a float32 sigmoid of 20 and 25 is 1.0
    assert metric.compute().item() == 100
    for name, best in (("roc_auc", 100), ("average_precision", 1)):
        metric = TaskMean(name)
        metric.update(10 * scores, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))  # of 400, a float64 one, too
        assert metric.compute().item() == best
        metric.update(torch.full((1, 1), float("nan")), torch.ones(1, 1))
        assert metric.compute().isnan()


def test_task_mean_without_any_usable_task_is_nan():
    metric = TaskMean("roc_auc")
    metric.update(torch.zeros(2, 1), torch.ones(2, 1))
    assert metric.compute().isnan()
