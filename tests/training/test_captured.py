from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from graphattn.errors import ConfigError
from graphattn.models.gps import GPS
from graphattn.models.graph import GraphTransformer
from graphattn.models.image import ConnNet, VisionTransformer
from graphattn.models.sequence import CausalTransformer
from graphattn.nn import BatchNorm
from graphattn.nn.norm import real_rows
from graphattn.training import (
    GraphClassification,
    GraphRegression,
    ImageClassification,
    InductiveNodeClassification,
    LanguageModelling,
    Segmentation,
    Sparsification,
    WarmupCosine,
)
from graphattn.training.captured import CapturedSteps, make_eager
from graphattn.training.padding import PaddedBatch, TensorBatch, filling, room_for, sizes_of
from graphattn_kernels import backends


@pytest.fixture(autouse=True)
def _no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is how batches are filled up, whichever backend reads them: Numba would compile for half a
    minute."""
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)


def molecules(count: int, seed: int = 0, *, node_labels: int = 0, tasks: int = 1) -> list[Data]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        nodes = int(torch.randint(1, 30, (1,), generator=generator))
        edges = torch.randint(0, nodes, (2, 3 * nodes), generator=generator)
        y = torch.randint(0, 2, (1, tasks), generator=generator).float()
        if node_labels:
            y = torch.randint(0, node_labels, (nodes,), generator=generator)
        found.append(
            Data(
                x=torch.randint(0, 5, (nodes, 2), generator=generator),
                edge_index=edges,
                edge_attr=torch.randint(0, 4, (edges.shape[1], 1), generator=generator),
                rwse=torch.rand(nodes, 6, generator=generator),
                y=y,
            )
        )
    return found


def batches(graphs: list[Data], size: int) -> list[Batch]:
    return list(DataLoader(graphs, batch_size=size))


def test_filling_brings_the_nodes_and_the_pairs():
    for nodes, pairs in [(1, 1), (5, 5), (5, 7), (40, 200), (100, 2048), (333, 12_345), (400, 400)]:
        sizes = filling(nodes, pairs)
        assert sizes is not None and min(sizes) > 0
        assert sum(sizes) == nodes and sum(size * size for size in sizes) == pairs
    assert filling(3, 7) is None and filling(4, 17) is None and filling(4, 2) is None


@pytest.mark.parametrize("size", [1, 2, 16])
def test_there_is_room_for_the_batches_of_a_set(size: int):
    all_of_them = batches(molecules(64), size)
    largest = max(all_of_them, key=lambda batch: batch.num_nodes)
    room = room_for(sizes_of(largest))
    assert len({room.nodes, room.edges, room.graphs}) == 3
    held = [room.holds(sizes_of(batch)) for batch in all_of_them]
    assert sum(held) > 0.9 * len(held) and room.holds(sizes_of(largest))


def test_a_batch_that_is_filled_up_holds_the_batch():
    first, second = batches(molecules(16), 8)
    room = room_for(sizes_of(max(first, second, key=lambda batch: batch.num_nodes)))
    place = PaddedBatch(first, room)
    for batch in (first, second, first):
        place.fill(batch)
        ready = place.ready()
        n, e = batch.num_nodes, batch.num_edges
        assert ready.x.shape[0] == room.nodes and ready.edge_index.shape[1] == room.edges
        assert torch.equal(ready.x[:n], batch.x) and torch.equal(ready.edge_attr[:e], batch.edge_attr)
        assert torch.equal(ready.edge_index[:, :e], batch.edge_index)
        assert torch.equal(ready.batch[:n], batch.batch) and torch.equal(ready.ptr[:9], batch.ptr)
        assert torch.equal(ready.y[:8], batch.y) and ready.y[8:].isnan().all()
        assert bool((ready.edge_index[:, e:] >= n).all()) and bool((ready.edge_index < room.nodes).all())
        assert bool((ready.batch.diff() >= 0).all()) and int(ready.ptr[-1]) == room.nodes
        assert int(ready.ptr.diff().square().sum()) == room.pairs == ready.num_pairs


def test_a_batch_norm_over_real_rows_is_one_over_those_alone():
    torch.manual_seed(0)
    rows, rest = torch.randn(50, 7) * 3 + 5, torch.randn(14, 7) * 100
    ours, theirs = BatchNorm(7).double(), nn.BatchNorm1d(7).double()
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        x = rows.double().requires_grad_()
        filled = torch.cat([x, rest.double()])
        with real_rows({64: torch.tensor(50)}):
            out = ours(filled)[:50]
        expected = theirs(rows.double().requires_grad_(True))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)  # statistics in float32
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    with real_rows({64: torch.tensor(50)}):
        other = torch.randn(63, 7).double()
        torch.testing.assert_close(ours.train()(other), theirs.train()(other), rtol=1e-4, atol=1e-4)


MODELS: dict[str, Any] = {
    "gps": lambda readout, out: GPS(
        out,
        in_vocab=[5, 5],
        edge_vocab=[4],
        rwse_dim=6,
        rwse_width=4,
        width=16,
        heads=2,
        layers=2,
        readout=readout,
        virtual_node=readout != "node",
    ),
    "graph_transformer": lambda readout, out: GraphTransformer(
        out, in_vocab=[5, 5], edge_vocab=[4], width=16, heads=2, layers=2, readout=readout
    ),
}
TASKS: dict[str, Any] = {
    "integer labels": lambda make: GraphClassification(make("mean", 3), labels="multilabel", metric="roc_auc"),
    "regression": lambda make: GraphRegression(make("sum", 1)),
    "multilabel": lambda make: GraphClassification(make("mean", 3), labels="multilabel"),
    "nodes": lambda make: InductiveNodeClassification(make("node", 3), num_classes=3),
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", MODELS)
def test_captured_steps_are_the_steps_without(name: str, kind: str):
    torch.manual_seed(1)
    task = TASKS[kind](MODELS[name])
    plain = copy.deepcopy(task)
    labels = {"node_labels": 3 if kind == "nodes" else 0, "tasks": 3 if "labels" in kind or kind == "multilabel" else 1}
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3, eps=1e-3) for module in (task, plain)]
    steps = CapturedSteps(task, optimizers[0], clip=1.0)
    for batch in batches(molecules(22, **labels), 8):  # the last one is smaller
        if kind == "integer labels":
            batch.y = batch.y.long()
        found = steps(batch)
        prediction, target = plain.rows(plain(batch).float(), batch, "train")
        loss = plain.loss(prediction, target)
        optimizers[1].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[1].step()
        torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.prediction, prediction.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.target, target, equal_nan=True)
    for (key, ours), theirs in zip(task.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_a_larger_batch_makes_more_room():
    torch.manual_seed(0)
    task = GraphRegression(MODELS["gps"]("mean", 1))
    steps = CapturedSteps(task, torch.optim.Adam(task.parameters()))
    small, large = batches(molecules(4), 4)[0], batches(molecules(40), 40)[0]
    steps(small)
    first = steps._place
    steps(large)
    assert steps._place is not first and steps._place.room.holds(sizes_of(large))
    second = steps._place
    steps(small)
    assert steps._place is second


def test_what_cannot_be_filled_up_is_one_clear_error():
    task = GraphRegression(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(ConfigError, match="would count what is filled up"):
        CapturedSteps(task, torch.optim.Adam(task.parameters()))(batches(molecules(2), 2)[0])
    with pytest.raises(ConfigError, match="needs batches of graphs"):
        sizes_of(molecules(1)[0])
    batch = batches(molecules(2), 2)[0]
    batch.name = ["a", "b"]
    with pytest.raises(ConfigError, match="not 'name'"):
        PaddedBatch(batch, room_for(sizes_of(batch)))


class OnAnyDevice(GraphRegression):
    """Takes the way of captured steps on the CPU, too, where they run one by one."""

    def on_fit_start(self) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        self._captured = CapturedSteps(self, optimizer, self.trainer.gradient_clip_val) if self.capture else None


def fit(capture: bool, folder: Any) -> tuple[GraphRegression, Any]:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    torch.manual_seed(3)
    task = OnAnyDevice(
        MODELS["gps"]("mean", 1),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-3),
        lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_epochs=1),
        capture=capture,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[ModelCheckpoint(folder, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = [DataLoader(molecules(20, seed), batch_size=8) for seed in (0, 1)]
    trainer.fit(task, *loaders)
    return task, trainer


def test_lightning_counts_clips_and_schedules_captured_steps(tmp_path: Any):
    (ours, mine), (plain, other) = fit(True, tmp_path / "a"), fit(False, tmp_path / "b")
    assert mine.global_step == other.global_step == 9
    rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (mine, other)]
    assert rates[0] == rates[1] != 1e-3
    for name in ("train/loss", "val/loss", "train/mae", "val/mae"):
        torch.testing.assert_close(mine.callback_metrics[name], other.callback_metrics[name], rtol=1e-3, atol=1e-4)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-4)
    saved = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 9 and len(saved["optimizer_states"][0]["state"]) == len(list(ours.parameters()))


def small_images(count: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 16, 16, generator=generator)
    return {"x": x, "y": (x[:, 0, :8].mean((1, 2)) > x[:, 0, 8:].mean((1, 2))).long(), "names": ["a"] * count}


def small_vit(**options: Any) -> VisionTransformer:
    shared = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 2, "embed_dim": 32}
    return VisionTransformer(**shared, depth=2, num_heads=2, **options)


def test_a_batch_of_tensors_is_taken_over():
    first, second = small_images(8), small_images(8, 1)
    place = TensorBatch(first)
    assert sorted(place.tensors) == ["x", "y"] and place.device.type == "cpu"
    for batch in (first, second):
        assert place.holds(batch) and not place.is_larger_than(batch)
        place.fill(batch)
        ready = place.ready()
        assert torch.equal(ready["x"], batch["x"]) and torch.equal(ready["y"], batch["y"])
    assert place.is_larger_than(small_images(7)) and not place.holds(small_images(7))
    assert not place.holds({**first, "x": first["x"].double()}) and not place.holds({"x": first["x"]})
    assert not place.is_larger_than({"x": first["x"][:2]})
    with pytest.raises(ConfigError, match="of named tensors"):
        TensorBatch({"names": ["a"]})


def test_a_smaller_batch_of_images_runs_apart_and_a_larger_one_makes_room():
    torch.manual_seed(1)
    task = ImageClassification(small_vit())
    plain = copy.deepcopy(task)
    optimizers = [torch.optim.AdamW(module.parameters(), eps=1e-3) for module in (task, plain)]
    steps = CapturedSteps(task, optimizers[0], clip=1.0)
    places = []
    for seed, size in enumerate([8, 8, 5, 8, 12, 8]):
        batch = small_images(size, seed)
        found = steps(batch)
        places.append(steps._place)
        loss, prediction, target = plain.compute(batch, "train")
        optimizers[1].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[1].step()
        assert not found.loss.requires_grad
        torch.testing.assert_close(found.loss, loss.detach())
        torch.testing.assert_close(found.prediction, prediction.detach())
        assert torch.equal(found.target, target)
    assert places[0] is places[3] is not places[4] and places[4] is places[5]


def test_what_a_step_depends_on_is_recorded_anew(monkeypatch: pytest.MonkeyPatch):
    task = ImageClassification(small_vit(attention="ssa", attention_options={"keep": 0.5}))
    steps = CapturedSteps(task, torch.optim.AdamW(task.parameters()))
    steps(small_images(4))
    forgotten: list[int] = []
    monkeypatch.setattr(steps._recording, "forget", lambda: forgotten.append(1))
    steps(small_images(4))
    assert not forgotten
    for module in task.modules():
        if hasattr(module, "set_scheme"):
            module.set_scheme(0.25)
    steps(small_images(4))
    steps(small_images(4))
    assert len(forgotten) == 1


def test_a_run_with_captured_steps_goes_on_on_the_cpu():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)
    optimizer.param_groups[0] |= {"capturable": True, "lr": torch.tensor(1e-2)}
    parameter.grad = torch.ones(3)
    with pytest.raises((AssertionError, RuntimeError)):  # PyTorch's own refusal
        optimizer.step()
    make_eager(optimizer)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9899))


def sparsification(reconstruction_epochs: int) -> Sparsification:
    network = small_vit(attention="sparsifiner", attention_options={"keep": 0.5})
    return Sparsification(network, small_vit(), reconstruction_epochs=reconstruction_epochs)


def scenes(count: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 32, 32, generator=generator)
    return {"x": x, "y": (x.mean(1) > 0.5).long(), "size": [(32, 32)] * count}


def texts(count: int, seed: int) -> dict[str, Any]:
    tokens = torch.randint(0, 9, (count, 33), generator=torch.Generator().manual_seed(seed))
    return {"x": tokens[:, :-1], "y": tokens[:, 1:]}


ON_TENSORS: dict[str, Any] = {
    "softmax": (lambda: ImageClassification(small_vit()), small_images),
    "infsa, 1 hop": (lambda: ImageClassification(small_vit(attention="infsa")), small_images),
    "infsa, 3 hops": (
        lambda: ImageClassification(small_vit(attention="infsa", attention_options={"hops": 3})),
        small_images,
    ),
    "linear_infsa": (lambda: ImageClassification(small_vit(attention="linear_infsa")), small_images),
    "sparsifiner, stage 1": (lambda: sparsification(1), small_images),
    "sparsifiner, stage 2": (lambda: sparsification(0), small_images),
    "oracle": (
        lambda: ImageClassification(
            small_vit(attention="sparsifiner", attention_options={"selector": "oracle", "keep": 0.5})
        ),
        small_images,
    ),
    "window": (
        lambda: ImageClassification(
            small_vit(attention="sparsifiner", attention_options={"selector": "window", "keep": 0.5})
        ),
        small_images,
    ),
    "binary": (lambda: Segmentation(ConnNet(head="binary", long_range=None)), scenes),
    "connectivity": (lambda: Segmentation(ConnNet(head="connectivity", long_range="non_local"), "biconnet"), scenes),
    "instances": (lambda: Segmentation(ConnNet(head="instances", long_range=None)), scenes),
    "text": (lambda: LanguageModelling(CausalTransformer(9, 32, 2, 2)), texts),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_TENSORS)
def test_replayed_steps_on_tensors_train_like_eager_ones(name: str):
    make, batch_of = ON_TENSORS[name]
    torch.manual_seed(4)
    task = make().cuda().train()
    plain = copy.deepcopy(task)
    for module in (task, plain):
        if isinstance(module, Sparsification):
            module.teacher.cuda()
    losses = []
    for module, captured in ((task, True), (plain, False)):
        # Small steps: what is compared are sums in other orders, not the paths that Adam takes from them.
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, eps=1e-2)
        steps = CapturedSteps(module, optimizer, clip=1.0) if captured else None
        seen = []
        for seed, size in enumerate([8, 8, 8, 8, 5, 8, 8]):
            batch = {key: x.cuda() if isinstance(x, torch.Tensor) else x for key, x in batch_of(size, seed).items()}
            if steps is not None:
                seen.append(float(steps(batch).loss))
                continue
            loss = module.compute(batch, "train").loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            seen.append(float(loss))
        losses.append(torch.tensor(seen))
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["uniform", "local"])
@pytest.mark.parametrize("kind", ["images", "text"])
def test_replayed_steps_draw_anew(kind: str, scheme: str):
    options: dict[str, Any] = {"keep": 0.5, "scheme": scheme, "minimum": 1}
    torch.manual_seed(5)
    if kind == "images":
        task: Any = ImageClassification(small_vit(attention="ssa", attention_options={**options, "always": 1}))
        batch: Any = small_images(8)
    else:
        task = LanguageModelling(CausalTransformer(9, 32, 2, 2, attention="ssa", attention_options=options))
        batch = texts(8, 0)
    task = task.cuda().train()
    batch = {key: x.cuda() if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
    steps = CapturedSteps(task, torch.optim.Adam(task.parameters(), lr=0.0))
    losses = [float(steps(batch).loss) for _ in range(8)]
    assert len(set(losses[3:])) > 1, "the weights stand still, so what changes is what is drawn"
    for module in task.modules():
        if hasattr(module, "set_scheme"):
            module.set_scheme(1.0)
    whole = [float(steps(batch).loss) for _ in range(5)]
    assert max(whole[2:]) - min(whole[2:]) < 1e-5, "recorded anew, nothing is drawn"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_train_like_eager_ones(name: str, precision: torch.dtype | None):
    torch.manual_seed(2)
    task = GraphRegression(MODELS[name]("mean", 1)).cuda()
    plain = copy.deepcopy(task)
    losses = []
    for module, captured in ((task, True), (plain, False)):
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=1e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        steps = CapturedSteps(module, optimizer, clip=1.0) if captured else None
        seen = []
        for epoch in range(4):
            for batch in batches(molecules(60, seed=epoch), 16):
                batch = batch.cuda()
                with torch.autocast("cuda", precision, enabled=precision is not None):
                    if steps is not None:
                        seen.append(float(steps(batch).loss))
                        continue
                    prediction, target = module.rows(module(batch).float(), batch, "train")
                    loss = module.loss(prediction, target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                seen.append(float(loss))
            schedule.step()
        losses.append(torch.tensor(seen))
    assert steps is None
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05 if precision else 5e-3, atol=0.02 if precision else 2e-3)
