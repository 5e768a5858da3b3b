"""The data module of prompts: splits, epochs, tokenizers; and a small model that learns from it in a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("lightning")
pytest.importorskip("torch_geometric")

from graphattn.errors import ArgumentError, ConfigError
from graphattn.mechanisms import WindowSchedule
from graphattn.models.sequence import CausalTransformer
from graphattn.nn import NodeTokens
from graphattn.training import PromptDataModule


@pytest.fixture
def cane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """140 papers in 7 classes that their words tell, each citing some of its class."""
    random = torch.Generator().manual_seed(0)
    for name in ("cora", "HepTh"):
        folder = tmp_path / "cane_tag" / name
        folder.mkdir(parents=True)
        texts = [f"topic{node % 7} word{node % 5} paper{node}" for node in range(140)]
        edges = [(node, (node + 7 * int(torch.randint(1, 9, (), generator=random))) % 140) for node in range(140)] * 2
        (folder / "data.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        (folder / "graph.txt").write_text("".join(f"{a}\t{b}\n" for a, b in edges), encoding="utf-8")
    (tmp_path / "cane_tag" / "cora" / "group.txt").write_text(
        "\n".join(str(n % 7) for n in range(140)), encoding="utf-8"
    )
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path))
    return tmp_path


def test_batches_of_nodes(cane: Path) -> None:
    data = PromptDataModule(
        "cane_cora", fan_out=[3, 2], text_tokens=[2, 0], batch_size=16, seed=3, options={"words": 40}
    )
    data.setup()
    assert data.graph is not None and data.tokens is not None and data.writer is not None
    assert [len(data.sets[key]) for key in ("train", "val", "test")] == [84, 28, 28]
    train = data.train_dataloader()
    epochs = []
    for epoch in (0, 0, 1):
        train.sampler.set_epoch(epoch)
        epochs.append([*train])
    assert len(epochs[0]) == 6 and sum(len(batch["y"]) for batch in epochs[0]) == 84
    for one, again in zip(epochs[0], epochs[1], strict=True):
        assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(
        one["nodes"].shape != other["nodes"].shape or not torch.equal(one["nodes"], other["nodes"])
        for one, other in zip(epochs[0], epochs[2], strict=True)
    )
    first, again = ([*data.val_dataloader()] for _ in range(2))
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(first, again, strict=True))
    nodes = torch.cat(
        [batch["nodes"][:, 0] for key in ("train", "val", "test") for batch in data.sets[key].batches(50)]
    )
    assert nodes.sort().values.tolist() == list(range(140))
    words = data.tokens.decode(first[0]["tokens"][0][first[0]["attention_mask"][0]].tolist())
    assert words.startswith("We need to classify") and words.endswith(data.graph.classes[int(first[0]["y"][0])])
    assert len(data.writer.label_tokens) == 7


def test_pairs_and_sets_with_masks(cane: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = PromptDataModule("cane_hepth", fan_out=[2], batch_size=8)
    links.setup()
    batch = next(iter(links.test_dataloader()))
    assert ((batch["parents"] < 0) & (batch["nodes"] >= 0)).sum(1).tolist() == [2] * len(batch["y"])
    assert set(batch["y"].tolist()) <= {0, 1} and links.sets["train"].depth is None

    from torch_geometric.data import Data

    import graphattn_datasets

    data = Data(x=torch.rand(20, 3), y=torch.arange(20) % 2, edge_index=torch.randint(20, (2, 40)))
    for at, key in enumerate(("train", "val", "test")):
        data[f"{key}_mask"] = torch.arange(20) % 3 == at
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        graphattn_datasets, "load_dataset", lambda name, **given: seen.update(given, name=name) or [data]
    )
    masks = PromptDataModule("squirrel_filtered", fan_out=[2], split=4, batch_size=7)
    masks.setup()
    assert seen == {"name": "squirrel_filtered", "root": None, "split_index": 4}
    assert len(masks.sets["train"]) == 7 and masks.graph is not None and masks.graph.classes == ("class 0", "class 1")
    seen.clear()
    PromptDataModule("ogbn-arxiv", fan_out=[2]).setup()
    assert "split_index" not in seen  # which sets of one split do not know
    del data.train_mask
    with pytest.raises(ConfigError, match="needs a graph with masks"):
        PromptDataModule("squirrel_filtered").setup()
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        PromptDataModule("cane_cora", batch_size=0)


def test_a_small_transformer_learns_in_a_window_and_runs_without(cane: Path) -> None:
    torch.manual_seed(0)
    data = PromptDataModule(
        "cane_cora", fan_out=[2, 1], text_tokens=[1, 0], batch_size=42, seed=1, options={"words": 40}
    )
    data.setup()
    assert data.graph is not None and data.tokens is not None and data.writer is not None
    model = CausalTransformer(data.tokens.size, 32, 2, 1)
    nodes = NodeTokens(data.graph.x, 32, scale=0.2)
    optimizer = torch.optim.AdamW([*model.parameters(), *nodes.parameters()], 1e-2)
    labels, schedule = data.writer.label_tokens, WindowSchedule()

    def scores(batch: dict[str, torch.Tensor], training: bool) -> torch.Tensor:
        graph = schedule.at(training).graph(batch, depth=2)
        rows = nodes(model.embed(batch["tokens"]), batch["node_ids"])
        found = model.features(inputs_embeds=rows, graph=graph, positions=batch["positions"])
        return model.head(found[torch.arange(len(found)), batch["answer_at"]])[:, labels]

    for epoch in range(8):
        for batch in data.sets["train"].batches(42, epoch):
            optimizer.zero_grad()
            F.cross_entropy(scores(batch, True), batch["y"]).backward()
            optimizer.step()
    with torch.no_grad():
        hits = [scores(batch, False).argmax(1) == batch["y"] for batch in data.sets["test"].batches(28)]
    assert float(torch.cat(hits).float().mean()) > 0.7  # a seventh by chance
