"""The window experiment: its generated graph, its networks, its table and claims, and one comparison all the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.llm_windows import claims, compare, report, tasks, train
from experiments.llm_windows.network import WINDOWS, PromptNetwork
from experiments.llm_windows.synthetic import KINDS, kinds_by_depth, mixing_graph, told_by_identities, told_by_links
from graphattn import TokenGraph
from graphattn.errors import ArgumentError, ConfigError
from graphattn_datasets.text_graphs import EgoTrees, TextGraph
from graphattn_kernels import backends


@pytest.fixture(autouse=True)
def _gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)


TINY = {"graph_options": {"centres": 60, "leaves": 40, "links": 4}, "steps": 2, "batch": 16, "width": 16}


def tiny_task(**changes: object) -> tasks.Task:
    return tasks.make_task(tasks.configuration("synthetic", quick=True, **{**TINY, **changes}), 0, "cpu")


def test_in_the_generated_graph_links_tell_the_class() -> None:
    graph = mixing_graph(centres=500, leaves=400, links=8, degree=6, noise=0.4, seed=3)
    members, leaves = 4000, 400
    kind = graph.x.argmax(1)  # 0 to 3 of members, 4 to 7 of leaves, 8 of centres
    assert bool((graph.x.sum(1) == 1).all()) and bool((graph.x.max(1).values == 1).all())  # all of a kind alike
    source, target = graph.edge_index
    between = (source < members) & (target < members + leaves)
    rule = graph.y[members + leaves + source[between] // 8]
    follows = kind[source[between]] ^ (kind[target[between]] - KINDS) == rule
    assert abs(float(follows.float().mean()) - (0.6 + 0.4 / KINDS)) < 0.02
    count = torch.bincount(source[between], minlength=members)
    assert count.unique().tolist() == [1, 2, 3, 4, 5, 6]  # no fixed places in prompts
    above = (source < members) & (target >= members + leaves)
    assert torch.equal(target[above], members + leaves + torch.arange(members) // 8)  # each of one centre
    of_centre = kind[:members].view(500, 8).sort(1).values
    assert torch.equal(of_centre, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).expand(500, 8))  # evenly of all kinds
    assert bool((graph.split[: members + leaves] == -1).all())
    assert graph.split[members + leaves :].bincount().tolist() == [300, 100, 100]
    trees = tasks.Task({"fan_out": [8, 8]}, graph, None, {}, 0).trees(  # type: ignore[arg-type]
        (graph.y >= 0).nonzero().flatten(), torch.Generator().manual_seed(0)
    )
    assert float((told_by_links(graph, trees) == graph.y[trees.node[:, 0]]).float().mean()) > 0.98


@pytest.mark.parametrize("name", ["synthetic", "synthetic-small"])
def test_nothing_but_links_tells_the_class(name: str) -> None:
    """Whoever sees the nodes, their depths and their order, but no links, is right a quarter of the time."""
    task = tasks.make_task(tasks.configuration(name), 0, "cpu")
    graph = task.graph
    generator = torch.Generator().manual_seed(0)
    known = task.trees(task.centres["train"].repeat(2), generator)
    trees = task.trees(task.centres["test"].repeat(2), generator)
    y, before = graph.y[trees.node[:, 0]], graph.y[known.node[:, 0]]

    def right(answer: torch.Tensor) -> float:
        return float((answer == y).float().mean())

    chance = 0.25 + 4 * (0.25 * 0.75 / 1400) ** 0.5  # four deviations above it
    assert chance < 0.3 < 0.95 < right(told_by_links(graph, trees))
    assert right(told_by_identities(graph, known, trees)) < chance
    # the same vote must find a name where there is one: here, trees that it knows already
    assert float((told_by_identities(graph, known, known) == before).float().mean()) > 0.9

    counts, learned = (kinds_by_depth(graph, found).double() for found in (trees, known))
    assert right(linear(learned.flatten(1), before, counts.flatten(1))) < chance
    kinds = torch.arange(KINDS)
    products = [(counts[:, 0] * counts[:, 1][:, kinds ^ rule]).sum(1) for rule in range(KINDS)]
    assert right(torch.stack(products, 1).argmax(1)) < chance  # more members of a kind, more leaves by the rule

    places = [in_places(task, found) for found in (known, trees)]
    assert right(linear(places[0], before, places[1])) < chance


def in_places(task: tasks.Task, trees: EgoTrees) -> torch.Tensor:
    """What stands at each place of a prompt, one-hot: the order of tokens, as a linear model sees it."""
    prompts = task.prompts(trees)
    hot = torch.cat([task.graph.x, task.graph.x.new_zeros(1, task.graph.x.shape[1])])
    return hot[prompts["node_ids"]].flatten(1).double()


def linear(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """The classes that ridge regression tells."""
    one = torch.nn.functional.one_hot(y, KINDS).double()
    x, test = (torch.cat([part, part.new_ones(len(part), 1)], 1) for part in (x, test))
    weights = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1], dtype=torch.float64), x.T @ one)
    return (test @ weights).argmax(1)


def test_what_the_generated_graph_is_told() -> None:
    for name in ("links", "leaves"):
        with pytest.raises(ArgumentError, match=f"{name} must be a positive multiple of 4, got 6"):
            mixing_graph(**{"centres": 10, "leaves": 40, name: 6})


def test_the_widest_uni_window_is_plain_causal_attention() -> None:
    task = tiny_task()
    network = train.make_network(task, 0, "cpu").eval()
    prompts = train.evaluation_prompts(task, "val")
    length = prompts["tokens"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    there = prompts["attention_mask"]
    graph = PromptNetwork.graph(prompts, WINDOWS["uni-4"], task.depth)
    dense = graph.to_dense().expand(len(there), -1, -1)
    assert torch.equal(dense, causal & there.unsqueeze(1) & there.unsqueeze(2))
    with torch.no_grad():
        one = {name: x[:1] for name, x in prompts.items()}
        full = network(one, WINDOWS["uni-4"], task.depth)
        small = network(one, WINDOWS["uni-1"], task.depth)
        plain = PromptNetwork.graph
        PromptNetwork.graph = staticmethod(lambda *_: TokenGraph.from_adj_t(causal))  # type: ignore[method-assign]
        try:
            expected = network(one, WINDOWS["uni-4"], task.depth)
        finally:
            PromptNetwork.graph = staticmethod(plain)  # type: ignore[method-assign]
    torch.testing.assert_close(full, expected, rtol=1e-5, atol=1e-6)
    assert float((small - full).abs().max()) > 1e-5


def test_node_tokens_are_projected_features_and_learn() -> None:
    task = tiny_task()
    network = train.make_network(task, 0, "cpu")
    prompts = train.evaluation_prompts(task, "val")
    scores = network(prompts, WINDOWS["bidi-2"], task.depth)
    assert scores.shape == (len(prompts["y"]), task.writer.tokens.size)
    scores.logsumexp(1).sum().backward()
    gradient = network.project[1].weight.grad
    assert gradient is not None and float(gradient.abs().sum()) > 0
    assert all(x.grad is None or bool(x.grad.isfinite().all()) for x in network.parameters())
    assert "features" not in network.state_dict()


def test_training_takes_every_node_before_any_comes_again() -> None:
    task = tiny_task()
    supply = train._Supply(task, 12, torch.Generator().manual_seed(0))
    nodes = task.centres["train"]
    seen = torch.cat([supply.next()["nodes"][:, 0] for _ in range(3)])
    assert len(nodes) == 36 and sorted(seen.tolist()) == sorted(nodes.tolist())


def test_prompts_of_a_task_have_one_size_whatever_trees_there_are() -> None:
    """As a recorded step needs them."""
    task = tiny_task()
    sizes = set()
    for node in task.centres["test"]:
        trees = task.trees(node.unsqueeze(0), torch.Generator().manual_seed(0))
        assert trees.node.shape[1] <= 21
        prompts = task.prompts(trees)
        sizes.add((prompts["tokens"].shape, prompts["parents"].shape))
        assert int((prompts["node_of_token"] >= 0).sum()) == int(trees.count)
    assert sizes == {((1, 25), (1, 21))}  # <begin>, 1 + 4 + 16 nodes, "?", the centre, ":"


def test_configurations_and_few_training_nodes() -> None:
    for task in tasks.TASKS:
        full, quick = tasks.configuration(task), tasks.configuration(task, quick=True)
        assert full["steps"] > quick["steps"] and set(full) <= set(quick)
        assert len(full["fan_out"]) == 2  # the windows are those of two hops
    assert len(tiny_task(train_nodes=7).centres["train"]) == 7
    with pytest.raises(ConfigError, match="task must be one of"):
        tasks.configuration("pubmed")


@pytest.mark.parametrize("name", ["cora", "squirrel"])
def test_tasks_with_texts_and_with_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small graph in the place of the data, which tests do not have."""
    ring = torch.stack([torch.arange(30), (torch.arange(30) + 1) % 30])
    texts = [f"paper {n} about topic {n % 3}" for n in range(30)] if name == "cora" else []
    blank = TextGraph(name, torch.zeros(31, dtype=torch.int64), ring[0, :0], torch.rand(30, 5), torch.arange(30) % 3)
    graph = blank.with_edges(torch.cat([ring, torch.stack([ring[0], (ring[0] + 7) % 30])], 1))
    graph.classes, graph.texts, graph.split = ("first", "second", "third kind"), texts, torch.arange(30) % 3
    monkeypatch.setattr(tasks, "_graph", lambda config, seed: graph)
    task = tasks.make_task(tasks.configuration(name, quick=True), 0, "cpu")
    prompts = train.evaluation_prompts(task, "test")
    scores = train.make_network(task, 0, "cpu")(prompts, WINDOWS["uni-2"], task.depth)
    assert scores.shape[0] == 10 and bool(scores.isfinite().all())
    assert 0 <= train.accuracy(train.make_network(task, 0, "cpu"), task, prompts, WINDOWS["uni-1"]) <= 100


RELIANCE = {"I": 0.5, "II": 9.0, "III": 1.0, "IV": 1.0}


def made_up(table: torch.Tensor) -> report.Results:
    shared = {"task": "toy", "validation": 1.0, "parameters": 10, "tokens": 5, "majority": 30.0, "seconds": 1.0,
              "seconds_in_all": 2.0, "reliance": RELIANCE, "device": "cpu", "nodes": {"train": 1, "val": 1, "test": 1},
              "config": {"layers": 1, "width": 2, "steps": 3, "batch": 4}}  # fmt: skip
    return {
        window: {
            seed: {**shared, "test": dict(zip(claims.NAMES, table[seed, row].tolist(), strict=True))}
            for seed in range(len(table))
        }
        for row, window in enumerate(claims.NAMES)
    }


def test_the_table_and_the_claims_say_what_the_numbers_say(tmp_path: Path) -> None:
    table = torch.full((3, 8, 8), 50.0, dtype=torch.float64)
    own = torch.tensor([70.0, 80.0, 82.0, 75.0], dtype=torch.float64)
    table[:, torch.arange(4), torch.arange(4)] = own
    table[:, :4, 3] = own - 0.5  # small to large loses half a point
    table[:, 3, 3] = 75.0
    table += torch.tensor([-0.1, 0.0, 0.1]).view(3, 1, 1)
    results = made_up(table)
    torch.testing.assert_close(report.matrix(results), table)
    lost = {level: [value] * 3 for level, value in RELIANCE.items()}
    found = claims.claims(table, lost)
    verdicts = {claim.text: claim for claim in found}
    first = found[0]
    assert first.held is True and "best uni-3" in first.found and first.found.startswith("+8.50")
    assert next(c for t, c in verdicts.items() if "with uni-1 needs no mask" in t).held is True
    up = next(c for t, c in verdicts.items() if t.startswith("Small to large"))
    assert up.held is True and "0.50 points lost on the way up, 25.00 on the way down" in up.found
    assert next(c for t, c in verdicts.items() if "with uni-1 loses much" in t).held is True  # 20 points
    assert next(c for t, c in verdicts.items() if "bidi-4 loses much" in t).held is False  # none
    assert next(c for t, c in verdicts.items() if "exchange their children" in t).held is True
    assert next(c for t, c in verdicts.items() if "children change places" in t).held is False
    noisy = table + 30 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert claims.claims(noisy, lost)[0].held is None
    facts = {"task": "toy", "quick": False, "command": "x", "python": "3", "torch": "2", "date": "d", "commit": "abc"}
    facts["references"] = {"best": 99.0}
    text = report.write(tmp_path, results, facts)
    assert "| uni-1 | **70.0 ± 0.1** | 50.0 ± 0.1 |" in text and "best 99.0 %" in text and "**did not hold**" in text
    assert (tmp_path / "matrix.png").stat().st_size > 1000 and text.startswith("# Windows of a graph: ")
    assert len((tmp_path / "matrix.csv").read_text().splitlines()) == 1 + 3 * 64
    del results["bidi-4"]
    assert "No seed has all windows yet" in report.markdown(results, facts)


def test_one_seed_has_no_interval() -> None:
    assert str(claims.interval([2.0])) == "+2.00" and str(claims.interval([1.0, 3.0])).startswith("+2.00 ± 12.7")
    assert claims.claims(torch.rand(1, 8, 8).double(), {"I": [1.0], "II": [1.0]})[0].held is None


def test_a_comparison_all_the_way_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object, titles: dict[str, str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    configuration, ran = tasks.configuration, []

    def small(task: str, **options: object):
        return configuration(task, **{**options, **TINY})

    def in_process(jobs, parallel):  # a process for each of eight runs would mostly import
        for job in jobs:
            ran.append(job.name)
            train.main(job.command[3:])
        return []

    monkeypatch.setattr(train, "configuration", small)
    monkeypatch.setattr(compare, "configuration", small)
    monkeypatch.setattr(compare, "run_jobs", in_process)
    arguments = ["--task", "synthetic", "--quick", "--seeds", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert compare.main(arguments) == 0
    assert len(ran) == 8
    for name in ("compare.md", "compare.json", "matrix.csv", "matrix.png", "look.md", "look.json", "maps.png",
                 "received.png", "shells.png", "tree.png"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 100, name
    for name in ("compare.md", "look.md"):
        assert (tmp_path / name).read_text().lstrip("# ").startswith("QUICK RUN, no results: "), name
    assert len(titles) == 5 and all(title.startswith("QUICK RUN, no results: ") for title in titles.values())
    result = json.loads((tmp_path / "uni-2" / "seed-0" / "result.json").read_text())
    assert list(result["test"]) == list(WINDOWS) and result["nodes"] == {"train": 36, "val": 12, "test": 12}
    looked = json.loads((tmp_path / "look.json").read_text())
    assert set(result["reliance"]) == {"I", "II", "III", "IV"}
    assert sum(looked["uni-2 after"]["shells"][0]) == pytest.approx(1.0)
    assert looked["uni-2 after"]["shells"][0][3:] == [0.0, 0.0]  # the window lets nothing further through
    assert compare.main([*arguments, "--no-look"]) == 0 and len(ran) == 8


def test_a_run_is_repeated_to_the_bit(tmp_path: Path) -> None:
    config = tasks.configuration("synthetic", quick=True, **TINY)
    first, second = (train.train(config, "bidi-1", 1, "cpu", tmp_path / name) for name in "ab")
    assert first["test"] == second["test"]
    weights = [torch.load(tmp_path / name / "network.pt", weights_only=True) for name in "ab"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
