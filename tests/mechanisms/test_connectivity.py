"""Connectivity cubes: the invariants of ConnNet's formalism, losses, instances, and the mechanism on any graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from graphattn import TokenGraph, attend, edge_weights, patterns
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.mechanisms.connectivity import (
    Connectivity,
    ConnectivityLoss,
    agreed_edges,
    agreed_mask,
    bilateral_vote,
    class_labels,
    components,
    connectivity_labels,
    cube_to_edges,
    dice_loss,
    edge_loss,
    edges_to_cube,
    instance_labels,
    instances,
    label_propagation,
    mutual_agreement,
    neighbours_of,
    pair_logits,
    pair_votes,
)
from graphattn.testing import random_graph

BOTH = pytest.mark.parametrize("k", [4, 8])


def reciprocal_by_loop(cube: Tensor) -> Tensor:
    """Channel K - 1 - c of the neighbour, pixel by pixel."""
    k, height, width = cube.shape
    out = torch.zeros_like(cube)
    for c, (down, right) in enumerate(neighbours_of(k)):
        for y in range(height):
            for x in range(width):
                if 0 <= y + down < height and 0 <= x + right < width:
                    out[c, y, x] = cube[k - 1 - c, y + down, x + right]
    return out


def random_masks(count: int = 5, size: int = 24) -> Tensor:
    return torch.rand(count, size, size) < torch.linspace(0.1, 0.9, count)[:, None, None]


# --- labels ---------------------------------------------------------------------------------------------------


@BOTH
def test_labels_by_the_definition(k: int) -> None:
    mask = random_masks(1, 7)[0]
    cube = connectivity_labels(mask, k)
    for c, (down, right) in enumerate(neighbours_of(k)):
        for y in range(7):
            for x in range(7):
                inside = 0 <= y + down < 7 and 0 <= x + right < 7
                assert bool(cube[c, y, x]) == (inside and bool(mask[y, x]) and bool(mask[y + down, x + right]))


@BOTH
def test_labels_are_reciprocal(k: int) -> None:
    """Invariant 1."""
    for cube in (*connectivity_labels(random_masks(), k), instance_labels(torch.randint(3, (9, 11)), k)):
        assert torch.equal(cube, reciprocal_by_loop(cube))


@BOTH
def test_voting_keeps_labels_and_loses_isolated_pixels(k: int) -> None:
    """Invariant 2."""
    masks = random_masks()
    labels = connectivity_labels(masks, k).float()
    assert torch.equal(pair_votes(labels, logits=False), labels)
    found = agreed_mask(labels, logits=False)
    structure = np.ones((3, 3)) if k == 8 else ndimage.generate_binary_structure(2, 1)
    lonely = [m & (ndimage.convolve(m.astype(int), structure.astype(int), mode="constant") == 1) for m in masks.numpy()]
    assert np.array_equal((masks & ~found).numpy(), np.stack(lonely)) and not (found & ~masks).any()
    assert torch.equal(bilateral_vote(labels, logits=False) > 0.5, found)


def test_the_sum_is_8_inside() -> None:
    """Invariant 3."""
    masks = random_masks(6)
    masks[-1] = True
    degree = connectivity_labels(masks).sum(1)
    full = torch.from_numpy(np.stack([ndimage.binary_erosion(m, np.ones((3, 3))) for m in masks.numpy()]))
    assert torch.equal(degree == 8, full)
    border = degree[:, 0, 1:-1].flatten(), degree[:, 1:-1, -1].flatten()
    assert max(x.max().item() for x in border) == 5
    assert degree[:, 0, 0].max() == degree[:, -1, -1].max() == 3


def test_classes_are_masks_of_their_own() -> None:
    classes = torch.randint(4, (2, 6, 7))
    classes[0, 0] = 255
    cube = class_labels(classes, 4)
    assert cube.shape == (2, 4, 8, 6, 7)
    for c in range(4):
        assert torch.equal(cube[:, c], connectivity_labels(classes == c))


def test_instances_that_touch_stay_apart() -> None:
    ids = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0]])
    assert not instance_labels(ids)[4, :, 1].any() and connectivity_labels(ids > 0)[4, :2, 1].all()
    labels, counts = instances(instance_labels(ids).float(), logits=False)
    assert labels.tolist() == ids.tolist() and counts.item() == 2


# --- votes and agreement --------------------------------------------------------------------------------------


@BOTH
def test_votes_are_symmetric(k: int) -> None:
    """Invariant 4."""
    cube = torch.randn(k, 9, 6, dtype=torch.float64)
    votes = pair_votes(cube)
    torch.testing.assert_close(votes, cube.sigmoid() * reciprocal_by_loop(cube.sigmoid()))
    torch.testing.assert_close(votes, reciprocal_by_loop(votes))
    s = bilateral_vote(cube)
    torch.testing.assert_close(s, votes.amax(0))
    assert (s <= cube.sigmoid().amax(0)).all()


@BOTH
def test_the_hard_rule(k: int) -> None:
    """Invariant 5."""
    p = torch.rand(3, k, 11, 8, dtype=torch.float64)
    other = torch.stack([reciprocal_by_loop(x) for x in p])
    before = torch.ones_like(p, dtype=torch.bool)
    for threshold in (0.1, 0.3, 0.5, 0.7):
        on = mutual_agreement(p, threshold, logits=False)
        assert torch.equal(on, (p > threshold) & (other > threshold))
        assert not (on & ~(p > threshold)).any() and not (on & ~before).any()
        assert torch.equal(on.any(1), agreed_mask(p, threshold, logits=False))
        assert torch.equal(mutual_agreement(p.logit(), threshold), on)
        before = on
    hard, s = agreed_mask(p, logits=False), bilateral_vote(p, logits=False)
    assert torch.equal(hard, torch.minimum(p, other).amax(1) > 0.5)
    assert not (hard & ~(s > 0.25)).any() and not ((s > 0.5) & ~hard).any()


@pytest.mark.parametrize(
    ("move", "order"),
    [
        (lambda x: x.flip(-1), [2, 1, 0, 4, 3, 7, 6, 5]),
        (lambda x: x.flip(-2), [5, 6, 7, 3, 4, 0, 1, 2]),
        (lambda x: x.rot90(1, (-2, -1)), [2, 4, 7, 1, 6, 0, 3, 5]),
        (lambda x: x.mT, [0, 3, 5, 1, 6, 2, 4, 7]),
    ],
    ids=["left-right", "up-down", "quarter", "transposed"],
)
def test_flips_and_turns(move: object, order: list[int]) -> None:
    """Invariant 7: a moved image has the moved cube, with channels exchanged."""
    mask, cube = random_masks(2, 9), torch.randn(2, 8, 6, 9)
    assert torch.equal(connectivity_labels(move(mask)), move(connectivity_labels(mask))[:, order])  # type: ignore[operator]
    moved = move(cube)[:, order]  # type: ignore[operator]
    torch.testing.assert_close(bilateral_vote(moved), move(bilateral_vote(cube)))  # type: ignore[operator]
    assert torch.equal(agreed_mask(moved), move(agreed_mask(cube)))  # type: ignore[operator]
    assert torch.equal(instances(moved).counts, instances(cube).counts)


def test_nothing_wraps_around() -> None:
    """Invariant 8: sure pixels on opposite borders do not meet."""
    cube = torch.full((8, 5, 6), -9.0)
    cube[:, :, [0, -1]] = 9.0
    cube[:, 2] = -9.0
    labels, counts = instances(cube)
    assert counts.item() == 4 and not labels[:, 1:-1].any()


# --- the graph ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("size", [(5, 7), (2, 2), (1, 6), (3, 1), (1, 1), (0, 3)])
def test_cube_and_edges_round_trip(size: tuple[int, int], k: int) -> None:
    """Invariant 6."""
    height, width = size
    graph = patterns.grid(height, width, neighbours=k)
    cube = torch.randn(2, k, height, width)
    edges = cube_to_edges(graph, cube)
    source, target = graph.edge_index
    assert edges.shape == (2, graph.num_edges)
    for e in range(graph.num_edges):
        (sy, sx), (ty, tx) = divmod(source[e].item(), width), divmod(target[e].item(), width)
        assert torch.equal(edges[:, e], cube[:, neighbours_of(k).index((sy - ty, sx - tx)), ty, tx])
    back = edges_to_cube(graph, edges, fill=-7.0)
    assert torch.equal(cube_to_edges(graph, back), edges)
    outside = back == -7.0
    assert torch.equal(back.where(~outside, cube), cube)
    assert outside.sum() == 2 * (k * height * width - graph.num_edges)


def test_the_symmetrised_adjacency_is_the_vote() -> None:
    """Invariant 6, as a matrix: A * A^T."""
    graph = patterns.grid(4, 5, neighbours=8)
    cube = torch.randn(8, 4, 5, dtype=torch.float64)
    matrix = graph.to_scipy(cube_to_edges(graph, cube.sigmoid())).toarray()
    votes = graph.to_scipy(cube_to_edges(graph, pair_votes(cube))).toarray()
    np.testing.assert_allclose(matrix * matrix.T, votes)


@BOTH
def test_a_ready_score_takes_the_road_of_attend(k: int) -> None:
    """Logits of two classes as the scores of two heads, mutual agreement as the normaliser."""
    graph = patterns.grid(4, 5, neighbours=k)
    cube, v = torch.randn(3, 2, k, 4, 5, dtype=torch.float64), torch.randn(3, 20, 2, 6, dtype=torch.float64)
    score = cube_to_edges(graph, cube).mT
    weights = edge_weights(graph, None, None, score=score, normalizer="mutual")
    votes = pair_votes(cube)
    torch.testing.assert_close(edges_to_cube(graph, weights.mT), votes)
    out = attend(graph, None, None, v, score=score, normalizer="mutual")
    dense = torch.zeros(3, 2, 20, 20, dtype=torch.float64)
    source, target = graph.edge_index
    dense[..., target, source] = cube_to_edges(graph, votes)
    torch.testing.assert_close(out, torch.einsum("bhts,bshd->bthd", dense, v))


@BOTH
def test_components_are_scipys(k: int) -> None:
    """Invariant 6: of a mask's cube those of the mask, of an instance cube the instances."""
    masks = random_masks()
    structure = np.ones((3, 3)) if k == 8 else None
    labels, counts = instances(connectivity_labels(masks, k).float(), logits=False)
    kept = agreed_mask(connectivity_labels(masks, k).float(), logits=False).numpy()
    for found, count, mask in zip(labels.numpy(), counts.tolist(), kept, strict=True):
        expected, number = ndimage.label(mask, structure)
        assert number == count and np.array_equal(found, expected)
    ids = torch.zeros(12, 12, dtype=torch.long)
    ids[1:5, 1:6], ids[1:5, 6:11], ids[5:9, 3:8] = 7, 3, 9  # they touch
    found, count = instances(instance_labels(ids, k).float(), logits=False)
    assert count.item() == 3
    assert torch.equal(found.long(), (torch.tensor([0, 7, 3, 9]) == ids[..., None]).long().argmax(-1))


def test_components_of_any_graph() -> None:
    grid = patterns.grid(6, 7, neighbours=8)
    agreed = mutual_agreement(torch.randn(3, 8, 6, 7))
    on_grid, counts = components(grid, cube_to_edges(grid, agreed))
    listed = TokenGraph.from_edge_index(grid.edge_index, 42)
    on_list, listed_counts = components(listed, cube_to_edges(grid, agreed))
    assert torch.equal(on_grid, on_list) and torch.equal(counts, listed_counts)
    assert torch.equal(on_grid.view(3, 6, 7), instances(torch.where(agreed, 9.0, -9.0)).labels)


def test_small_instances_can_be_left_out() -> None:
    mask = torch.zeros(2, 6, 9, dtype=torch.bool)
    mask[0, 0, :3], mask[0, 3:5, 2:6], mask[0, 5, 8], mask[1, 2:4, 2:4] = True, True, True, True
    cube = connectivity_labels(mask).float()
    labels, counts = instances(cube, logits=False, min_pixels=4)
    assert counts.tolist() == [1, 1]
    assert torch.equal(labels[0] == 1, F.pad(torch.ones(2, 4), (2, 3, 3, 1)) == 1) and labels[1].sum() == 4
    assert instances(cube, logits=False, min_pixels=3).counts.tolist() == [2, 1]
    alone, count = instances(cube[0], logits=False, min_pixels=4)
    assert torch.equal(alone, labels[0]) and count.item() == 1


def test_label_propagation_ends_constant_on_components() -> None:
    """Invariant 10."""
    graph = patterns.grid(5, 6, neighbours=8)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[:2, :2], mask[3:, 3:] = True, True
    weights = cube_to_edges(graph, connectivity_labels(mask).double()).unsqueeze(-1)
    x = torch.randn(30, 1, 3, dtype=torch.float64)
    out = label_propagation(graph, weights, x, steps=200).view(5, 6, 3)
    assert torch.equal(out[~mask], x.view(5, 6, 3)[~mask])
    for part in (out[:2, :2], out[3:, 3:]):
        torch.testing.assert_close(part, part[:1, :1].expand_as(part), rtol=0, atol=1e-8)
    assert (out[0, 0] - out[4, 5]).abs().max() > 1e-3
    once = label_propagation(graph, weights, x, steps=1)
    dense = torch.zeros(30, 30, dtype=torch.float64)
    source, target = graph.edge_index
    dense[target, source] = weights.squeeze(1)
    dense += torch.eye(30)
    torch.testing.assert_close(once[:, 0], dense / dense.sum(1, keepdim=True) @ x[:, 0])


# --- losses ---------------------------------------------------------------------------------------------------


def plain_terms(logits: Tensor, mask: Tensor, smooth: float) -> dict[str, Tensor]:
    """The terms as the released codes write them, on probabilities."""
    y, m, p = connectivity_labels(mask).to(logits), mask.to(logits), logits.sigmoid()
    v = pair_votes(logits)
    s, degree = v.amax(1), y.sum(1)
    edge = v.amin(1) * ((degree > 0) & (degree < 8))
    dice = 1 - (2 * (s * m).sum((1, 2)) + smooth) / (s.sum((1, 2)) + m.sum((1, 2)) + smooth)
    return {
        "cube": F.binary_cross_entropy(p, y),
        "votes": F.binary_cross_entropy(v, y),
        "mask": F.binary_cross_entropy(s, m),
        "dice": dice.mean(),
        "edge": F.binary_cross_entropy(edge, torch.zeros_like(edge)),
    }


def test_losses_are_those_of_the_definition() -> None:
    logits = torch.randn(2, 8, 7, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 7, 6) < 0.6
    expected = plain_terms(logits, mask, 1e-3)
    loss = ConnectivityLoss("biconnet")
    ours = loss.terms(logits, mask)
    assert ours.keys() == expected.keys()
    for name, term in ours.items():
        torch.testing.assert_close(term, expected[name], msg=name)
        ours_grad, theirs = (torch.autograd.grad(t, logits, retain_graph=True)[0] for t in (term, expected[name]))
        torch.testing.assert_close(ours_grad, theirs, msg=name)
    weights = {"cube": 0.8, "votes": 0.2, "mask": 1.0, "dice": 1.0, "edge": 1.0}
    torch.testing.assert_close(loss(logits, mask), sum(w * expected[n] for n, w in weights.items()))
    torch.testing.assert_close(ConnectivityLoss()(logits, mask), expected["cube"])
    only = ConnectivityLoss("dconnnet", votes=0.0, dice=0.0, edge=0.0)
    torch.testing.assert_close(only(logits, mask), expected["cube"] + expected["mask"])


def test_the_relative_edge_loss_has_no_zero_denominator() -> None:
    votes = torch.full((1, 8, 4, 4), -100.0, requires_grad=True)
    for mask in (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        loss = edge_loss(votes, connectivity_labels(mask), relative=True)
        assert loss.isfinite() and torch.autograd.grad(loss, votes)[0].isfinite().all()


def test_losses_of_sure_and_wrong_pixels_are_finite_and_push_back() -> None:
    """Where probabilities round to 1, logits still know by how much."""
    logits = torch.full((1, 8, 3, 3), 60.0, requires_grad=True)
    loss = ConnectivityLoss("biconnet")(logits, torch.zeros(1, 3, 3))
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all() and grad[0, :, 1, 1].min() > 0
    mask = torch.ones(1, 3, 3)
    right = torch.where(connectivity_labels(mask), 60.0, -60.0)
    assert ConnectivityLoss("biconnet")(right, mask) < 1e-3  # the border is a boundary, whose votes are 0


def test_pair_logits_are_logits_of_votes() -> None:
    cube = torch.randn(2, 8, 4, 5, dtype=torch.float64) * 3
    torch.testing.assert_close(pair_logits(cube).sigmoid(), pair_votes(cube))


def test_losses_of_classes_instances_and_autocast() -> None:
    classes = torch.randint(3, (2, 5, 5))
    logits = torch.randn(2, 3, 8, 5, 5)
    masks = torch.stack([classes == c for c in range(3)], 1)
    total = ConnectivityLoss("biconnet")(logits, masks, class_labels(classes, 3))
    each = torch.stack([ConnectivityLoss("biconnet")(logits[:, c], masks[:, c]) for c in range(3)])
    torch.testing.assert_close(total, each.mean())
    ids = torch.randint(3, (2, 5, 5))
    ConnectivityLoss("dconnnet")(logits[:, 0], ids > 0, instance_labels(ids))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ConnectivityLoss("biconnet")(logits.bfloat16(), masks)
    torch.testing.assert_close(mixed, ConnectivityLoss("biconnet")(logits.bfloat16().float(), masks))


def test_dice_of_a_perfect_and_an_empty_map() -> None:
    mask = (torch.rand(2, 6, 6) < 0.5).float()
    assert dice_loss(mask, mask) == 0
    assert dice_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)) == 0


# --- the mechanism --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [1, 3])
def test_the_mechanism_is_its_equation(hops: int) -> None:
    graph = random_graph(2, "dense")
    module = Connectivity(8, 2, 3, hops=hops).double()
    with torch.no_grad():
        module.score_bias.normal_()
    n = graph.num_tokens
    x, edge = torch.randn(n, 8, dtype=torch.float64), torch.randn(graph.num_edges, 3, dtype=torch.float64)
    q, k, v = module.qkv(x).view(n, 3, 2, 4).unbind(1)
    source, target = graph.edge_index
    dense = torch.full((2, n, n), float("-inf"), dtype=torch.float64)
    scores = (q[target] * k[source]).sum(-1) / 2 + module.score_bias + module.edge(edge)
    dense[:, target, source] = scores.T
    weights = dense.sigmoid() * dense.sigmoid().mT  # 0 where either edge is not there
    for _ in range(hops):
        v = (v + torch.einsum("hts,shd->thd", weights, v)) / (1 + weights.sum(-1).T.unsqueeze(-1))
    out, _ = module(x, graph, edge)
    torch.testing.assert_close(out, module.out(v.flatten(1)))


def test_a_graph_for_each_head() -> None:
    heads = [patterns.grid(3, 4, neighbours=8), patterns.grid(3, 4, neighbours=4)]
    module, x = Connectivity(8, 2).double(), torch.randn(2, 12, 8, dtype=torch.float64)
    out, _ = module(x, TokenGraph.per_head(heads))
    parts = []
    for h, graph in enumerate(heads):
        q, k, v = module.qkv(x).unflatten(-1, (3, 2, 4))[..., h : h + 1, :].unbind(-3)
        w = edge_weights(graph, q, k, normalizer="mutual")
        parts.append(label_propagation(graph, w, v))
    torch.testing.assert_close(out, module.out(torch.cat(parts, -2).flatten(-2)))


def test_bad_arguments() -> None:
    grid, cube = patterns.grid(3, 4, neighbours=8), torch.zeros(8, 3, 4)
    with pytest.raises(ArgumentError, match="mask must hold 0 and 1 only, got 255 .*mask > 127"):
        connectivity_labels(torch.tensor([[0, 255]]))
    with pytest.raises(ArgumentTypeError, match="mask must be a tensor, got list"):
        connectivity_labels([[1]])
    with pytest.raises(ArgumentError, match=r"mask must be \[..., H, W\], got \[3\]"):
        connectivity_labels(torch.zeros(3))
    with pytest.raises(ArgumentError, match="neighbours must be 4 or 8, got 6"):
        connectivity_labels(torch.zeros(3, 3), 6)
    with pytest.raises(ArgumentTypeError, match="ids must be an integer tensor, got torch.float32"):
        instance_labels(torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match="classes must lie in 0..1"):
        class_labels(torch.full((3, 3), 2), 2)
    with pytest.raises(ArgumentError, match=r"cube must be \[..., 8, 3, 4\] for this grid, got \[8, 4, 3\]"):
        cube_to_edges(grid, cube.mT)
    with pytest.raises(ArgumentError, match=r"cube must be \[..., 8, 3, 4\] for this grid, got \[4, 3, 4\]"):
        cube_to_edges(grid, cube[:4])
    for graph in (patterns.complete(12), patterns.grid(3, 4, 2), patterns.grid(3, 4, torus=True)):
        with pytest.raises(ArgumentError, match="graph must be patterns.grid"):
            cube_to_edges(graph, cube)
    with pytest.raises(ArgumentError, match=r"edges must be \[..., 58\] for the edges of the grid, got \[5\]"):
        edges_to_cube(grid, torch.zeros(5))
    with pytest.raises(ArgumentError, match=r"agreed must be bool \[..., 58\]"):
        components(grid, torch.zeros(58))
    with pytest.raises(ArgumentError, match="threshold must be a probability"):
        agreed_edges(cube, threshold=-1.0)
    with pytest.raises(ArgumentError, match="min_pixels must be positive, got 0"):
        instances(cube, min_pixels=0)
    with pytest.raises(ArgumentError, match="steps must not be negative, got -1"):
        label_propagation(grid, torch.zeros(58, 1), torch.zeros(12, 1, 1), -1)
    with pytest.raises(ArgumentError, match=r"mask must be \[3, 4\] for logits \[8, 3, 4\], got \[4, 4\]"):
        ConnectivityLoss()(cube, torch.zeros(4, 4))
    with pytest.raises(ArgumentError, match="labels must have the shape of logits"):
        ConnectivityLoss()(cube, torch.zeros(3, 4), torch.zeros(4, 3, 4, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="preset must be one of"):
        ConnectivityLoss("unet")
    with pytest.raises(ArgumentError, match="dice must not be negative, got -1"):
        ConnectivityLoss(dice=-1)
    with pytest.raises(ArgumentError, match="hops must be a positive number, got 0"):
        Connectivity(8, 2, hops=0)
    with pytest.raises(ArgumentError, match="without edge rows, got edge="):
        Connectivity(8, 2)(torch.zeros(12, 8), grid, torch.zeros(58, 3))
