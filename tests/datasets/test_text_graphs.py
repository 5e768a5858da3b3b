"""Text-attributed graphs, sampled trees and the prompts that serialise them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, DataError
from graphattn.graph import graph_window
from graphattn_datasets.text_graphs import (
    NODE,
    TEXT_GRAPHS,
    EgoTrees,
    PromptSet,
    PromptWriter,
    Template,
    TextGraph,
    Tokens,
    align_nodes,
    bag_of_words,
    hugging_face_tokens,
    join_trees,
    load_text_graph,
    sample_trees,
    split_links,
    split_nodes,
    trees_of_neighbors,
    word_tokens,
)

CLASSES = ("odd one", "even")
FOLDER = Path(os.environ.get("GRAPHATTN_DATA", "/nowhere"))  # unset while a test runs


def small(nodes: int = 30, edges: int = 70) -> TextGraph:
    random = torch.Generator().manual_seed(5)
    edge_index = torch.randint(nodes, (2, edges), generator=random)
    texts = [f"paper {node} speaks of w{node % 7} and w{node % 3}" for node in range(nodes)]
    y = torch.arange(nodes) % 2
    bare = TextGraph("small", torch.zeros(nodes + 1).long(), edge_index[0][:0], torch.rand(nodes, 4), y, CLASSES, texts)
    return bare.with_edges(edge_index)


def neighbours(graph: TextGraph) -> list[set[int]]:
    edges = set(zip(*graph.edge_index.tolist(), strict=True))
    return [{t for s, t in edges if s == node} for node in range(graph.num_nodes)]


def trees_as_lists(trees: EgoTrees) -> list[list[tuple[int, int, int]]]:
    rows = zip(*(x.tolist() for x in trees), strict=True)
    return [[vertex for vertex in zip(*row, strict=True) if vertex[0] >= 0] for row in rows]


def test_sampled_trees_are_trees_of_the_graph() -> None:
    graph, fan = small(), [3, 2, 2]
    beside = neighbours(graph)
    centres = torch.tensor([0, 4, 4, 11, 29])
    trees = sample_trees(graph.rowptr, graph.col, centres, fan, torch.Generator().manual_seed(0))
    for centre, tree in zip(centres.tolist(), trees_as_lists(trees), strict=True):
        assert tree[0] == (centre, -1, 0)
        children: dict[int, list[int]] = {at: [] for at in range(len(tree))}
        above = [0]
        for at, (node, parent, depth) in enumerate(tree[1:], 1):
            assert 0 <= parent < at and depth == tree[parent][2] + 1 and node in beside[tree[parent][0]]
            assert node != centre
            children[parent].append(node)
            above = above[:depth]  # pre-order: the parent is the last vertex that is one level up
            assert parent == above[-1]
            above.append(at)
        for at, (node, _, depth) in enumerate(tree):
            kids = children[at]
            possible = beside[node] - {centre}
            wanted = min(fan[depth], len(possible)) if depth < len(fan) else 0
            assert len(kids) == len(set(kids)) == wanted
    assert not torch.equal(trees.node[1], trees.node[2])  # each prompt has its own sample
    again = sample_trees(graph.rowptr, graph.col, centres, fan, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(trees, again, strict=True))


def test_children_are_drawn_uniformly_and_a_neighbour_can_be_left_out() -> None:
    star = small(7, 0).with_edges(torch.tensor([[0] * 6, [1, 2, 3, 4, 5, 6]]))
    generator = torch.Generator().manual_seed(0)
    trees = sample_trees(star.rowptr, star.col, torch.zeros(6000, dtype=torch.int64), [2], generator)
    share = torch.bincount(trees.node[:, 1:].flatten(), minlength=7)[1:] / 6000
    torch.testing.assert_close(share, torch.full((6,), 2 / 6), atol=0.03, rtol=0)
    trees = sample_trees(
        star.rowptr, star.col, torch.zeros(50, dtype=torch.int64), [5], generator, without=torch.full((50,), 3)
    )
    assert (trees.node[:, 1:].sort(1).values == torch.tensor([1, 2, 4, 5, 6])).all()
    alone = sample_trees(star.rowptr, star.col, torch.tensor([3]), [0], generator)
    assert trees_as_lists(alone) == [[(3, -1, 0)]]
    with pytest.raises(ArgumentError, match="fan_out is too much"):
        sample_trees(star.rowptr, star.col, torch.tensor([3]), [10**6] * 12, generator)


@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without")
def test_trees_of_a_neighbour_loader() -> None:
    # As NeighborLoader numbers it: seeds 0 and 1 first; edges lead from the sampled neighbour to who sampled it.
    edge_index = torch.tensor([[2, 3, 4, 3, 0, 5], [0, 0, 2, 1, 3, 3]])
    n_id = torch.tensor([10, 11, 12, 13, 14, 15])
    trees = trees_of_neighbors(edge_index, torch.tensor([0, 1]), 2, n_id)
    rows = [[(n, p) for n, p, _ in tree] for tree in trees_as_lists(trees)]
    assert [sorted(n for n, _ in row) for row in rows] == [[10, 12, 13, 14, 15], [10, 11, 13, 15]]
    for row, expected in zip(
        rows, ({(12, 10), (13, 10), (14, 12), (15, 13)}, {(13, 11), (10, 13), (15, 13)}), strict=True
    ):
        assert {(node, row[parent][0]) for node, parent in row if parent >= 0} == expected
    loader = pytest.importorskip("torch_geometric.loader")
    data = pytest.importorskip("torch_geometric.data").Data(edge_index=small().edge_index, num_nodes=30)
    try:
        batch = next(iter(loader.NeighborLoader(data, [3, 2], input_nodes=torch.tensor([4, 9]), batch_size=2)))
    except ImportError:
        return  # it needs pyg-lib or torch-sparse
    beside = neighbours(small())
    for tree in trees_as_lists(trees_of_neighbors(batch.edge_index, torch.arange(2), 2, batch.n_id)):
        assert all(node in beside[tree[parent][0]] for node, parent, _ in tree[1:])


def test_forests() -> None:
    graph = small()
    generator = torch.Generator().manual_seed(0)
    first, second = (
        sample_trees(graph.rowptr, graph.col, torch.tensor(ends), [2, 2], generator) for ends in ([1, 4, 7], [2, 5, 9])
    )
    for one, other, both in zip(*map(trees_as_lists, (first, second, join_trees(first, second))), strict=True):
        shifted = [(node, parent + len(one) if parent >= 0 else -1, depth) for node, parent, depth in other]
        assert both == one + shifted


def writer_of(graph: TextGraph, text_tokens: tuple[int, ...] = (0,), **options: Any) -> tuple[PromptWriter, Tokens]:
    template = Template("See node", ("", ". Its neighbour", " beside"), ". Which is", "? It is", " and")
    words = ["See node . Its neighbour beside Which is ? It and", *graph.texts]
    tokens = word_tokens(words, CLASSES)
    return PromptWriter(template, CLASSES, tokens, graph.texts if any(text_tokens) else (), text_tokens), tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_word_for_word(side: Any) -> None:
    graph = small()
    writer, tokens = writer_of(graph, (3, 2, 0))
    trees = EgoTrees(
        torch.tensor([[6, 3, 8, 9, 3], [2, -1, -1, -1, -1]]),
        torch.tensor([[-1, 0, 1, 1, 0], [-1, -1, -1, -1, -1]]),
        torch.tensor([[0, 1, 2, 2, 1], [0, -1, -1, -1, -1]]),
    )
    batch = writer(trees, torch.tensor([1, 0]), side=side)
    texts = [
        f"See node {NODE} paper 6 speaks . Its neighbour {NODE} paper 3 beside {NODE} beside {NODE} . Its neighbour "
        f"{NODE} paper 3 . Which is {NODE} ? It is even",
        f"See node {NODE} paper 2 speaks . Which is {NODE} ? It is odd one",
    ]
    mask = batch["attention_mask"]
    for row, text in enumerate(texts):
        numbers = batch["tokens"][row][mask[row]].tolist()
        assert tokens.decode(numbers) == text and numbers[0] == tokens.begin and numbers[-1] == tokens.end
        assert numbers[1:-1] == tokens.encode(text)
        vertex = batch["node_of_token"][row][batch["node_of_token"][row] >= 0]
        assert vertex.tolist() == list(range(int(trees.count[row])))
        named = batch["node_ids"][row][batch["node_ids"][row] >= 0].tolist()
        assert named == [*trees.node[row][trees.node[row] >= 0].tolist(), int(trees.node[row, 0])]  # the centre again
        assert torch.equal(batch["node_ids"][row] >= 0, batch["tokens"][row] == tokens.node)
        assert batch["positions"][row][mask[row]].tolist() == list(range(int(mask[row].sum())))
        answer = batch["labels"][row] >= 0
        assert batch["labels"][row][answer].tolist() == [int(writer.label_tokens[batch["y"][row]]), tokens.end]
        assert int(answer.nonzero()[0]) == int(batch["answer_at"][row]) + 1
        assert torch.equal(batch["targets"][row, :-1], batch["labels"][row, 1:])
    assert (batch["tokens"][~mask] == tokens.pad).all() and (~mask).any()
    assert bool(mask[:, 0].all() if side == "right" else mask[:, -1].all())
    without = writer(trees, batch["y"], side=side, answer=False)
    assert int(without["attention_mask"].sum()) == int(mask.sum()) - 4 and (without["labels"] == -100).all()
    assert torch.equal(
        writer(trees, batch["y"], length=50)["tokens"][:, : mask.shape[1]], writer(trees, batch["y"])["tokens"]
    )
    with pytest.raises(ArgumentError, match=f"length must be {mask.shape[1]} or more"):
        writer(trees, batch["y"], length=10)


def test_the_batch_is_a_window() -> None:
    graph = small()
    writer, _ = writer_of(graph)
    prompts = PromptSet(graph, writer, torch.arange(10), graph.y[:10], (3, 2), side="left", seed=1)
    batch = prompts.batch([1, 2, 3, 4])
    window = graph_window(batch["node_of_token"], batch["parents"], 1, "bidi", mask=batch["attention_mask"]).to_dense()
    for row, (vertex, node) in enumerate(zip(batch["node_of_token"].tolist(), batch["node_ids"].tolist(), strict=True)):
        there = [at for at, v in enumerate(vertex) if v >= 0]
        parent = batch["parents"][row].tolist()
        for t in there:
            for s in there:
                a, b = vertex[t], vertex[s]
                assert bool(window[row, t, s]) == (a == b or parent[a] == b or parent[b] == a)
        copies = [at for at, n in enumerate(node) if n >= 0 and vertex[at] < 0]
        assert len(copies) == 1 and node[copies[0]] == node[there[0]]
        assert torch.equal(
            window[row, copies[0]], batch["attention_mask"][row] & (torch.arange(len(vertex)) <= copies[0])
        )


def test_prompt_sets_repeat_and_resample() -> None:
    graph = small()
    prompts = PromptSet(graph, writer_of(graph)[0], torch.arange(20), graph.y[:20], (2, 2), seed=1)
    assert len(prompts) == 20 and prompts.depth == 2
    same, other = prompts.batch([3, 4], 0), prompts.batch([3, 4], 1)
    assert all(torch.equal(a, b) for a, b in zip(same.values(), prompts.batch([3, 4], 0).values(), strict=True))
    assert same["tokens"].shape != other["tokens"].shape or not torch.equal(same["node_ids"], other["node_ids"])
    seen = torch.cat([batch["node_ids"].gather(1, first(batch)).flatten() for batch in prompts.batches(6, 0)])
    assert seen.sort().values.tolist() == list(range(20)) and seen.tolist() != list(range(20))
    assert torch.cat([batch["y"] for batch in prompts.batches(6)]).tolist() == graph.y[:20].tolist()
    with pytest.raises(ArgumentError, match=r"centres must be \[3\] or \[2, 3\]"):
        PromptSet(graph, prompts.writer, torch.arange(4), torch.zeros(3, dtype=torch.int64))


def first(batch: dict[str, Tensor]) -> Tensor:
    return (batch["node_of_token"] == 0).byte().argmax(1, keepdim=True)


def test_links() -> None:
    graph = small()
    training, parts = split_links(graph, (0.6, 0.2), seed=2)
    edges = {tuple(sorted(edge)) for edge in graph.edge_index.T.tolist()}
    positive = [tuple(pair) for pairs, label in parts.values() for pair in pairs[:, label == 1].T.tolist()]
    negative = [tuple(pair) for pairs, label in parts.values() for pair in pairs[:, label == 0].T.tolist()]
    assert set(positive) == edges and len(positive) == len(edges) == len(negative) == len(set(negative))
    assert not set(negative) & edges
    kept = {tuple(sorted(edge)) for edge in training.edge_index.T.tolist()}
    assert kept == {tuple(pair) for pair in parts["train"][0][:, parts["train"][1] == 1].T.tolist()}

    pairs, label = parts["train"]
    tokens = word_tokens(["Do and link"], ("no", "yes"))
    writer = PromptWriter(Template("", ("",), "Do", "link", "and"), ("no", "yes"), tokens)
    prompts = PromptSet(training, writer, pairs, label, (3, 3))
    assert prompts.depth is None
    batch = prompts.batch(torch.arange(len(label)))
    for row in range(len(label)):
        u, v = pairs[:, row].tolist()
        tree = [*zip(batch["nodes"][row].tolist(), batch["parents"][row].tolist(), strict=True)]
        told = {(node, tree[parent][0]) for node, parent in tree if parent >= 0}
        roots = [node for node, parent in tree if parent < 0 and node >= 0]
        assert roots == [u, v]
        second = tree.index((v, -1), 1)
        assert (v, u) not in {(n, tree[p][0]) for n, p in tree[:second] if p == 0}
        assert (u, v) not in {(n, tree[p][0]) for n, p in tree[second:] if p == second}
        assert all(tuple(sorted(edge)) in kept for edge in told)
        copies = batch["node_ids"][row][(batch["node_ids"][row] >= 0) & (batch["node_of_token"][row] < 0)]
        assert copies.tolist() == [u, v]
    with pytest.raises(ArgumentError, match="too dense"):
        split_links(small(4, 40))


def tiny_tokenizer(texts: list[str]) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<pad>"],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.requires("hf")
def test_any_fast_tokenizer_of_hugging_face() -> None:
    graph = small()
    tokenizer = tiny_tokenizer(graph.texts)
    size = len(tokenizer)
    tokens = hugging_face_tokens(tokenizer)
    assert tokens.size == len(tokenizer) == size + 1 and tokens.node == size
    assert hugging_face_tokens(tokenizer).size == tokens.size  # added once
    template = Template("See ", ("the", "; it cites", " with "), ". Is", "?")
    writer = PromptWriter(template, CLASSES, tokens, graph.texts, (4, 2, 0))
    prompts = PromptSet(graph, writer, torch.arange(6), graph.y[:6], (2, 2), side="left")
    batch = prompts.batch(range(6))
    mask = batch["attention_mask"]
    bare = PromptSet(graph, PromptWriter(template, CLASSES, tokens), torch.arange(6), graph.y[:6], (2, 2)).batch(
        range(6)
    )
    for row in range(6):
        # Written piece by piece, a prompt has the tokens of the whole text between its first and its last node.
        node, depth = ([x for x in batch[key][row].tolist() if x >= 0] for key in ("nodes", "depths"))
        text = "".join(template.before[d] + NODE for d in depth) + template.question + NODE
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        numbers = bare["tokens"][row].tolist()
        start, last = numbers.index(tokens.node), len(numbers) - 1 - numbers[::-1].index(tokens.node)
        assert numbers[start : last + 1] == whole[whole.index(tokens.node) :]
        assert numbers.count(tokens.node) == len(node) + 1
        answered = batch["labels"][row][batch["labels"][row] >= 0].tolist()
        assert tokens.decode(answered).strip() == CLASSES[int(batch["y"][row])]
    vertex, copies = align_nodes(batch["tokens"], tokens.node, (batch["nodes"] >= 0).sum(1))
    assert torch.equal(vertex, batch["node_of_token"]) and copies.tolist() == [1] * 6 and mask.any()
    with pytest.raises(ArgumentError, match="prompt 0 must have a node token for each of its"):
        align_nodes(batch["tokens"][:, :3], tokens.node, (batch["nodes"] >= 0).sum(1))


def test_answers_and_writers_that_do_not_fit() -> None:
    tokens = word_tokens(["one two"], ())
    alike = PromptWriter("bare", ("one two", "one"), tokens)
    with pytest.raises(ArgumentError, match="answers must differ in their first token"):
        _ = alike.label_tokens
    with pytest.raises(ArgumentError, match="answers must have a token each"):
        PromptWriter("bare", ("one", ""), tokens)
    with pytest.raises(ArgumentError, match="text_tokens=.* needs texts"):
        PromptWriter("bare", ("one",), tokens, (), (3,))
    with pytest.raises(ArgumentError, match="template must be a Template or one of"):
        PromptWriter("none", ("one",), tokens)
    assert tokens.encode("two unheard") == [tokens.encode("two")[0], 3]


def write_cane(folder: Path, *, groups: bool = True) -> None:
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(
        "a graph kernel\nneural nets learn\na neural graph\nlogic rules\n", encoding="utf-8"
    )
    (folder / "graph.txt").write_text("0\t1\n1\t0\n2\t0\n3\t3\n1\t2\n", encoding="utf-8")
    if groups:
        (folder / "group.txt").write_text("0\n\n1\n6", encoding="utf-8")


def test_reading_cane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cane(tmp_path / "cane_tag" / "cora")
    write_cane(tmp_path / "cane_tag" / "HepTh", groups=False)
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path))
    cora = load_text_graph("cane_cora", words=3)
    assert repr(cora) == "TextGraph('cane_cora', 4 nodes, 3 edges, 3 features, 7 classes, texts, split)"
    assert cora.texts[2] == "a neural graph" and cora.y.tolist() == [0, -1, 1, 6] and len(cora.classes) == 7
    assert cora.edge_index.tolist() == [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]  # once each way, no self-loop
    assert cora.x.shape == (4, 3) and cora.split is not None and cora.split[1] == -1
    hepth = load_text_graph("cane_hepth")
    assert hepth.classes == () and hepth.split is None and hepth.num_nodes == 4
    with pytest.raises(ArgumentError, match="name must be one of"):
        load_text_graph("cane_zhihu")
    (tmp_path / "cane_tag" / "cora" / "group.txt").write_text("0\n1", encoding="utf-8")
    with pytest.raises(DataError, match="must have a line for each of 4 nodes, got 2"):
        load_text_graph("cane_cora")
    with pytest.raises(DataError, match=r"data.txt is not there"):
        load_text_graph("cane_cora", tmp_path)
    monkeypatch.delenv("GRAPHATTN_DATA")
    with pytest.raises(DataError, match="GRAPHATTN_DATA is not set"):
        load_text_graph("cane_cora")
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="GRAPHATTN_DATA is .*nowhere, which is not a folder"):
        load_text_graph("cane_cora")


def test_features_and_splits() -> None:
    x = bag_of_words(["b b a", "c a", "c d a", "d e"], 3)
    # "a" is in more than half of the texts; c and d are in two, b and e in one, and b comes first.
    rare = torch.tensor([2.0, 2.0, 4.0]).log()
    expected = torch.tensor([[0.0, 0, 2], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) * rare
    torch.testing.assert_close(x, torch.nn.functional.normalize(expected, dim=1))
    y = torch.tensor([0] * 50 + [1] * 10 + [-1] * 5)
    split = split_nodes(y, seed=1)
    assert (split[60:] == -1).all()
    assert [int((split[:50] == part).sum()) for part in range(3)] == [30, 10, 10]
    assert [int((split[50:60] == part).sum()) for part in range(3)] == [6, 2, 2]
    assert torch.equal(split, split_nodes(y, seed=1)) and not torch.equal(split, split_nodes(y, seed=2))


@pytest.mark.requires("pyg")
def test_from_pyg_data() -> None:
    from torch_geometric.data import Data

    masks = {f"{name}_mask": torch.arange(4) == at for at, name in enumerate(("train", "val", "test"))}
    data = Data(x=torch.rand(4, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([0, 1, 1, 0]), **masks)
    graph = TextGraph.from_data(data)
    assert graph.classes == ("class 0", "class 1") and graph.split is not None and graph.split.tolist() == [0, 1, 2, -1]
    assert graph.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    with pytest.raises(ArgumentError, match="classes must name 2 classes, got 1"):
        TextGraph.from_data(data, ["a"])


@pytest.mark.skipif(not (FOLDER / "cane_tag").is_dir(), reason="needs the files")
def test_the_real_files() -> None:
    cora, hepth = (load_text_graph(name, FOLDER / folder) for name, (folder, _) in TEXT_GRAPHS.items())
    assert (cora.num_nodes, int((cora.y >= 0).sum()), cora.col.shape[0] // 2) == (2277, 2211, 4771)
    assert hepth.num_nodes == 1038
    same = cora.y[cora.edge_index[0]] == cora.y[cora.edge_index[1]]
    assert float(same.float().mean()) == pytest.approx(
        0.8015, abs=1e-4
    )  # of the lines of the file, 0.814: some come twice, some are self-loops
    # What the classes are called was read off their words: each name's word is most frequent in its own class.
    for label, word in enumerate(("neural", "reinforcement", "bayesian", "pac", "genetic", "casebased", "ilp")):
        shares = [
            sum(word in text.lower().split() for text, y in zip(cora.texts, cora.y.tolist(), strict=True) if y == other)
            / int((cora.y == other).sum())
            for other in range(7)
        ]
        assert shares.index(max(shares)) == label
