"""The vision transformer: the published function, any mechanism, any graph, timm's methods."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn import create_model, list_mechanisms, patterns
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import sampling
from graphattn.models.image import VisionTransformer, from_timm
from graphattn.models.patches import patch_graph, resize_patch_weights, resize_positions, sincos_positions
from graphattn_kernels import backends

SMALL: dict[str, Any] = {"img_size": (8, 12), "patch_size": 4, "in_chans": 2, "num_classes": 5}
SMALL |= {"embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def _gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba would compile for half a minute what its own tests look at."""
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)


def make(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **options}).eval()


def images(height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(1))


# --- the function -------------------------------------------------------------------------------------------------


def by_hand(model: VisionTransformer, x: Tensor, allowed: Tensor) -> Tensor:
    """Pre-norm transformer with a class token, from the parameters alone."""
    size, heads = model.patch_embed.patch_size[0], 2
    state = model.state_dict()
    patches = F.unfold(x, size, stride=size).transpose(1, 2)
    h = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    h = torch.cat([state["cls_token"].expand(len(x), -1, -1), h], 1) + state["pos_embed"]

    def norm(h: Tensor, name: str) -> Tensor:
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, correction=0)
        return (h - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for n in range(2):
        at = f"blocks.{n}"
        qkv = norm(h, f"{at}.norm1") @ state[f"{at}.attn.in_proj_weight"].T + state[f"{at}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        score = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        h = h + linear((score.softmax(-1) @ v).transpose(1, 2).flatten(-2), f"{at}.attn.out_proj")
        h = h + linear(F.gelu(linear(norm(h, f"{at}.norm2"), f"{at}.mlp.inner")), f"{at}.mlp.outer")
    return linear(norm(h, "norm")[:, 0], "head")


@pytest.mark.parametrize(("graph", "options"), [("complete", {}), ("grid", {"radius": 1}), ("window", {"size": 2})])
def test_softmax_is_the_vision_transformer_under_the_mask_of_its_graph(graph: str, options: dict[str, Any]) -> None:
    model = make(graph=graph, graph_options=options).double()
    nn.init.normal_(model.cls_token)
    allowed = model.token_graph().to_dense().bool()
    assert bool(allowed[0].all()) and bool(allowed[:, 0].all())  # the class token reads all and is read by all
    assert bool(allowed.all()) == (graph == "complete")
    x = images().double()
    torch.testing.assert_close(model(x), by_hand(model, x, allowed), rtol=1e-10, atol=1e-10)


def test_timm_agrees() -> None:
    """timm's own class, weights and methods, where it is installed."""
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    for change in ({}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2, "init_values": 0.1}):
        theirs = vision_transformer.VisionTransformer(**{**SMALL, **change}).double().eval()
        ours = make(**change).double()
        ours.load_state_dict(from_timm(theirs.state_dict()))
        x = images().double()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
        for arguments in ({"indices": 1}, {"indices": [0, -1], "norm": True, "return_prefix_tokens": True}):
            got, expected = ours.forward_intermediates(x, **arguments), theirs.forward_intermediates(x, **arguments)
            torch.testing.assert_close(got, tuple(expected), rtol=1e-10, atol=1e-10)
        for model in (ours, theirs):
            model.set_input_size((12, 8), (2, 2))
        torch.testing.assert_close(ours(images(12, 8).double()), theirs(images(12, 8).double()), rtol=1e-6, atol=1e-6)
        mask = (torch.rand(ours.token_graph().num_tokens, ours.token_graph().num_tokens) < 0.6).fill_diagonal_(True)
        for arguments in ({"attn_mask": mask}, {"is_causal": True}):
            got = ours.forward_features(images(12, 8).double(), **arguments)
            expected = theirs.forward_features(images(12, 8).double(), **arguments)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph", ["complete", "grid"])
@pytest.mark.parametrize("attention", ["softmax", *list_mechanisms()])
def test_every_mechanism_learns(attention: str, graph: str) -> None:
    model = make(attention=attention, graph=graph).train()
    x, y = images(), torch.tensor([0, 3, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        if ".predictor." in name:  # learns by itself: no gradient goes through a choice
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_images_of_a_batch_do_not_meet() -> None:
    for attention in ("softmax", "infsa", "linear_infsa"):
        model = make(attention=attention)
        x = images()
        torch.testing.assert_close(model(x), torch.cat([model(one.unsqueeze(0)) for one in x]), rtol=1e-4, atol=1e-5)


# --- graphs -------------------------------------------------------------------------------------------------------


def test_graphs_of_patches() -> None:
    grid = patterns.grid(2, 3, self_loops=True)
    assert torch.equal(patch_graph("grid", 2, 3).to_dense(), grid.to_dense())
    dense = patch_graph("grid", 2, 3, prefix=2).to_dense().bool()
    assert torch.equal(dense[2:, 2:], grid.to_dense().bool()) and bool(dense[:2].all()) and bool(dense[:, :2].all())
    rule = patch_graph(lambda height, width: patterns.grid(height, width, torus=True), 3, 3)
    assert rule.num_edges == 9 * 8
    whole = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 7)
    assert patch_graph(whole, 2, 3, prefix=1) is whole
    assert patch_graph("complete", 2, 3, prefix=1).num_edges == 49
    for name, options in {
        "neighbourhood": {"size": 3},
        "strided": {"stride": 3},
        "random_regular": {"degree": 3},
    }.items():
        assert patch_graph(name, 4, 4, 1, options).num_tokens == 17


@pytest.mark.parametrize(
    ("rule", "options", "text"),
    [
        ("ring", None, "graph must be one of .*got 'ring'"),
        ("grid", {"size": 3}, "graph 'grid' does not take graph_options={'size': 3}"),
        (patterns.complete(5), None, "graph must hold the 2 x 3 patches"),
        (patterns.complete(6), {"size": 3}, "graph_options go with a named graph only"),
    ],
    ids=str,
)
def test_wrong_graphs(rule: Any, options: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        patch_graph(rule, 2, 3, 1, options)


# --- sizes --------------------------------------------------------------------------------------------------------


def test_resized_positions_of_a_plane_stay_a_plane() -> None:
    """Bicubic interpolation reproduces a linear function inside; prefix tokens keep theirs."""
    rows = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 8, 2).reshape(1, 64, 2)
    grid = resize_positions(torch.cat([torch.full((1, 1, 2), 9.0), rows], 1), (8, 8), (16, 8), prefix=1)
    assert torch.equal(grid[:, 0], torch.full((1, 2), 9.0))
    column = grid[0, 1:].view(16, 8, 2)[:, 3, 0]
    torch.testing.assert_close(column[4:12], torch.arange(4, 12) / 2 - 0.25)


def test_resized_patches_agree_on_resized_images() -> None:
    """FlexiViT: a larger patch that shows the same gives the same row."""
    weight, patch = torch.randn(5, 2, 4, 4), torch.randn(1, 2, 4, 4)
    larger = F.interpolate(patch, size=(8, 8), mode="bicubic", antialias=True)
    got = (resize_patch_weights(weight, (8, 8)) * larger).sum((1, 2, 3))
    torch.testing.assert_close(got, (weight * patch).sum((1, 2, 3)), rtol=1e-4, atol=1e-4)


def test_another_input_size() -> None:
    model = make(graph="grid")
    model.set_input_size((16, 8))
    assert model(images(16, 8)).shape == (3, 5) and model.token_graph().num_tokens == 9
    with pytest.raises(ArgumentError, match="x must hold images of 16 x 8 pixels, got .*dynamic_img_size=True"):
        model(images())
    with pytest.raises(ArgumentError, match="patch_size must divide .* 4 x 4 and images of 10 x 8 pixels"):
        model.set_input_size((10, 8))
    assert model(images(16, 8)).shape == (3, 5)  # nothing has changed
    dynamic = make(dynamic_img_size=True)
    fixed = copy.deepcopy(dynamic)
    fixed.set_input_size((16, 8))
    torch.testing.assert_close(dynamic(images(16, 8)), fixed(images(16, 8)))


def test_what_did_not_change_size_stays() -> None:
    """Patch weights are what an optimiser holds, and a size that the graph does not fit changes nothing."""
    model = make()
    weight = model.patch_embed.proj.weight
    model.set_input_size((16, 8))
    assert model.patch_embed.proj.weight is weight
    model = make(graph=patterns.grid(2, 3, self_loops=True))
    before = model(images())
    with pytest.raises(ArgumentError, match="graph must hold the 4 x 6 patches"):
        model.set_input_size(patch_size=2)
    assert torch.equal(model(images()), before)


def test_positions_of_sines_and_cosines() -> None:
    waves = sincos_positions(2, 3, 8)
    assert waves.shape == (6, 8) and len(torch.unique(waves, dim=0)) == 6
    torch.testing.assert_close(waves[4, :2], torch.tensor([1.0, 1.0e-4]).sin())  # row 1
    torch.testing.assert_close(waves[4, 6:], torch.tensor([1.0, 1.0e-4]).cos())  # column 1
    model = make(pos_embed="sincos")
    assert torch.equal(model.pos_embed[0, 1:], sincos_positions(2, 3, 16))
    assert make(pos_embed="none").pos_embed is None


# --- timm's methods -----------------------------------------------------------------------------------------------


def test_intermediates() -> None:
    model, x = make(reg_tokens=1), images()
    features, both = model.forward_intermediates(x, indices=[0, -1], norm=True, output_fmt="NLC")
    assert torch.equal(features, model.forward_features(x)) and torch.equal(both[1], features[:, 2:])
    maps = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert len(maps) == 1 and maps[0].shape == (3, 16, 2, 3)
    found = model.forward_intermediates(x, indices=[0], stop_early=True, return_prefix_tokens=True, output_dict=True)
    assert found["image_intermediates_prefix"][0].shape == (3, 2, 16)
    assert torch.equal(model.norm(model.blocks[0](*model._tokens(x, None, False))), found["image_features"])
    for wrong in (3, [2], []):
        with pytest.raises(ArgumentError, match="indices must name some of 2 blocks"):
            model.forward_intermediates(x, indices=wrong)


def test_heads_and_pools() -> None:
    x = images()
    model = make(class_token=False, global_pool="avg")
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), model.head(model.fc_norm(features.mean(1))))
    assert torch.equal(model.forward_head(features, pre_logits=True), model.fc_norm(features.mean(1)))
    model.reset_classifier(7, "max")
    assert model.get_classifier().out_features == 7 and model(x).shape == (3, 7)
    model.reset_classifier(0, "")
    assert model(x).shape == (3, 6, 16)
    assert make(representation_size=9).get_classifier().in_features == 9
    with pytest.raises(ArgumentError, match="global_pool='token' needs class_token=True"):
        make(class_token=False)
    with pytest.raises(ArgumentError, match="global_pool must be one of .*got 'mean'"):
        model.reset_classifier(3, "mean")


def test_pruned_model_gives_the_same_intermediates() -> None:
    model, x = make(), images()
    before = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert model.prune_intermediate_layers([0], prune_norm=True) == [0] and len(model.blocks) == 1
    assert torch.equal(model.forward_intermediates(x, indices=[0], intermediates_only=True)[0], before[0])
    assert isinstance(model.head, nn.Identity)


def test_what_optimizers_are_told() -> None:
    model = make(reg_tokens=1, init_values=0.1)
    names = [name for name, _ in model.named_parameters()]
    assert model.no_weight_decay() <= set(names)
    groups = model.group_matcher()
    stem = {name for name in names if re.match(groups["stem"], name)}
    assert stem == {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    blocks = [re.match(groups["blocks"][0][0], name) for name in names]
    assert {int(match[1]) for match in blocks if match} == {0, 1}
    assert model.pretrained_cfg["input_size"] == (2, 8, 12) and len(model.feature_info) == 2


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for enable in (False, True):
        model = make(drop_path_rate=0.4, attn_drop_rate=0.3).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(images()).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("attention", ["softmax", *list_mechanisms()])
@pytest.mark.parametrize("graph", ["complete", "grid"])
def test_training_after_inference_mode(graph: str, attention: str, dynamic: bool) -> None:
    """As Lightning's check before the first step: what the graph built then, training uses."""
    model, x = make(graph=graph, attention=attention, dynamic_img_size=dynamic), images(8, 8 if dynamic else 12)
    with torch.inference_mode():
        model(x)
    model.train()(x).sum().backward()


def test_checkpointing_draws_the_same_subgraphs() -> None:
    """From a generator, too, which PyTorch does not set back."""
    grads = []
    for enable in (False, True):
        model = make(attention="ssa", attention_options={"keep": 0.5, "minimum": 1})
        model.set_grad_checkpointing(enable)
        generator = torch.Generator().manual_seed(3)
        with sampling(model, True, generator):
            model(images()).square().sum().backward()
        grads.append([*(parameter.grad for parameter in model.parameters()), generator.get_state()])
    torch.testing.assert_close(*grads)


def test_masks_take_edges_out() -> None:
    model, x = make(), images()
    nothing = torch.eye(7, dtype=torch.bool)
    alone = make(graph=TokenGraph.from_adj_t(nothing))
    torch.testing.assert_close(model(x, attn_mask=nothing), alone(x))
    causal = model.forward_features(x, is_causal=True)
    changed = x.clone()
    changed[..., 4:, 8:] = 0  # the last patch
    torch.testing.assert_close(model.forward_features(changed, is_causal=True)[:, :-1], causal[:, :-1])


def test_drop_path_keeps_the_mean_and_drops_examples() -> None:
    from graphattn.nn import DropPath

    layer = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2)))  # an example goes as a whole
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert layer.eval()(x) is x
    rates = [block.drop_path.p for block in make(depth=3, drop_path_rate=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    with pytest.raises(ArgumentError, match="drop_path must be a probability"):
        DropPath(1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patch_size": 5}, "patch_size must divide .* 5 x 5 and images of 8 x 12 pixels"),
        ({"attention": "sofmax"}, "unknown mechanism 'sofmax'"),
        ({"attention_options": {"hops": 2}}, "options of mechanism 'multihead' must be among"),
        ({"num_heads": 3}, "width must be a positive multiple of heads"),
        ({"pos_embed": "rope"}, "pos_embed must be 'learn', 'sincos' or 'none', got 'rope'"),
        ({"weight_init": "moco"}, "weight_init must be '' or 'jax', got 'moco'"),
    ],
    ids=str,
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        make(**options)
    with pytest.raises(ArgumentError, match=r"x must be images \[B, 2, height, width\], got \[3, 8, 12\]"):
        make()(torch.zeros(3, 8, 12))


def test_compile_without_a_break() -> None:
    torch._dynamo.reset()
    model, x = make(), images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


# --- InfViT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "extra"),
    [("infvit_4", 57.7, 4 * 16), ("infvit_linear_4", 53.5, 4 * 16), ("infvit_24", 330.6, 24 * 16)],
)
def test_inferred_parameter_counts(name: str, published: float, extra: int) -> None:
    """The configuration is inferred from the published counts; this is what they were inferred from."""
    with torch.device("meta"):
        model = create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters()) - extra  # a discount for each head
    assert round(count / 1e6, 1) == pytest.approx(published)
    linear = 1024 * 1024 + 1024
    layer = {"infvit_linear_4": 4}.get(name, 5) * linear + (8 * 1024 * 1024 + 5 * 1024) + 4 * 1024
    rest = (16 * 16 * 3 * 1024 + 1024) + (1 + 197) * 1024 + 2 * 1024 + linear + (1024 * 1000 + 1000)
    assert count == len(model.blocks) * layer + rest
