"""Token pruning by class attention: rows leave, and those that stay are what attention says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.mechanisms.reconstruction import reconstruct, reconstruction_loss
from graphattn.models.image import PrunedVisionTransformer, VisionTransformer

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 5}
SMALL |= {"embed_dim": 12, "depth": 4, "num_heads": 3}


def make(**options: Any) -> PrunedVisionTransformer:
    torch.manual_seed(0)
    return PrunedVisionTransformer(**{**SMALL, **options}).double().eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["softmax", "sparsifiner"])
def test_keeping_all_is_the_vision_transformer(attention: str) -> None:
    pruned, x = make(attention=attention, token_keep=1.0), images()
    whole = VisionTransformer(**SMALL, attention=attention).double().eval()
    whole.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(pruned(x), whole(x))
    assert pruned.forward_tokens(x)[1].tolist() == [list(range(17))] * 3


@pytest.mark.parametrize("options", [{}, {"attention": "sparsifiner"}, {"reg_tokens": 2}])
def test_each_image_keeps_what_its_class_token_reads_most(options: dict[str, Any]) -> None:
    model, x = make(token_keep=0.6, **options), images()
    assert model.prune_after == [0, 1, 2]
    rows, kept = model.forward_tokens(x)
    prefix, sizes = model.num_prefix_tokens, [math.ceil(0.6**n * 16 - 1e-9) for n in (1, 2, 3)]
    assert kept.shape == (3, prefix + sizes[-1]) and rows.shape == (*kept.shape, 12)
    assert (kept.diff(dim=1) > 0).all() and kept[:, :prefix].tolist() == [list(range(prefix))] * 3
    assert (kept[0] != kept[1]).any()
    # A batch is its images, one by one: no budget of the first image, none that is remembered.
    for n in range(3):
        alone, its = model.forward_tokens(x[n : n + 1])
        assert torch.equal(its[0], kept[n])
        torch.testing.assert_close(alone[0], rows[n])
    torch.testing.assert_close(model.forward_tokens(x)[0], rows)
    # The first pruning by hand.
    tokens, graph = model._tokens(x, None, False)
    block: Any = model.blocks[0]
    normed = block.norm1(tokens)
    q, k = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)[:2]
    q, k = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in (q, k))
    read = (q[:, :, :1] @ k.mT / 2.0).softmax(-1).mean(1)[:, 0, prefix:]
    first = read.topk(sizes[0], 1).indices + prefix
    for n in range(3):
        assert set(kept[n, prefix:].tolist()) <= set(first[n].tolist())


def test_gradients_and_the_first_stage() -> None:
    model = make(attention="sparsifiner", token_keep=0.5).train()
    model(images()).square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".predictor." not in name)
    found = reconstruct(model, images())
    assert [entry.approximate.shape[-1] for entry in found] == [17, 9, 5, 3]
    reconstruction_loss(found).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_checkpointing_computes_blocks_again_and_changes_no_gradient() -> None:
    grads, calls = [], []
    for enable in (False, True):
        model, count = make(attention="sparsifiner", token_keep=0.5).train(), []
        model.set_grad_checkpointing(enable)
        model.blocks[1].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        model(images()).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        calls.append(len(count))
    assert calls == [1, 2]
    torch.testing.assert_close(*grads)


def test_bad_arguments() -> None:
    for options, text in (
        ({"token_keep": 0.0}, r"token_keep must be in \(0, 1\], got 0.0"),
        ({"prune_after": [2, 1]}, r"prune_after must name some of 4 blocks, ascending, got \[2, 1\]"),
        ({"prune_after": [4]}, "prune_after must name some of 4 blocks"),
        ({"graph": "grid"}, "needs class_token=True and graph='complete'"),
        ({"class_token": False, "global_pool": "avg"}, "needs class_token=True"),
        ({"attention": "infsa"}, "attention must be 'softmax' or 'sparsifiner', got 'infsa'"),
        ({"attention": "sparsifiner", "attention_options": {"selector": "random"}}, "selector must be 'predictor'"),
    ):
        with pytest.raises(ArgumentError, match=text):
            make(**options)
    with pytest.raises(ArgumentError, match="a mask over all tokens"):
        make()(images(), torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ArgumentError, match=r"forward_intermediates needs all patches, token_keep=1.0, got 0.7"):
        make().forward_intermediates(images())
    assert len(make(token_keep=1.0).forward_intermediates(images(), intermediates_only=True)) == 4
