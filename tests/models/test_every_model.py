"""What every registered model must do."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphattn import create_model, list_models
from graphattn.errors import ArgumentError
from graphattn.models import MODELS

Inputs = Callable[..., dict[str, Any]]
# connnet gives a row for each pixel; it has its own tests (test_connnet.py).
EVERY = pytest.mark.parametrize("name", [name for name in MODELS.names() if name != "connnet"])
SMALL = {"width": 16, "heads": 4, "layers": 2}
SMALL_IMAGE = {"embed_dim": 16, "num_heads": 4, "depth": 2, "img_size": 8, "patch_size": 4, "num_classes": 3}
IMAGE = ("infvit_24", "infvit_4", "infvit_linear_4", "vision_transformer")
# timm's names for what the others call by ours.
IMAGE_NAMES = {"dropout": "proj_drop_rate", "input_dropout": "pos_drop_rate", "attention_dropout": "attn_drop_rate"}
# What a model cannot be made without.
NEEDED: dict[str, dict[str, Any]] = {
    "causal_transformer": {"vocab": 11},
    "egt": {"out_channels": 3, "in_channels": 5},
    "conv_stack": {"out_channels": 3, "in_channels": 5, "dropout": 0.0},
    "graph_transformer": {"out_channels": 3, "in_channels": 5},
    "gps": {"out_channels": 3, "in_channels": 5},
    "gps_molhiv": {"rwse_width": 4, "dropout": 0.0, "attention_dropout": 0.0},
    "gps_zinc": {"rwse_width": 4, "attention_dropout": 0.0},
}


def make(name: str, **options: Any) -> nn.Module:
    if name in IMAGE:
        options = {IMAGE_NAMES.get(key, key): value for key, value in options.items()}
        return create_model(name, **{**SMALL_IMAGE, **options})
    return create_model(name, **{**NEEDED.get(name, {}), **SMALL, **options})


@EVERY
def test_forward_and_backward(name: str, inputs: Inputs) -> None:
    model = make(name)
    out = model(**inputs(model))
    assert out.dim() == 2 and out.isfinite().all()
    out.square().sum().backward()
    # The last block's new edge rows have no reader.
    unread = f"blocks.{SMALL['layers'] - 1}."
    for key, parameter in model.named_parameters():
        if key.startswith(unread) and ("edge_out" in key or ".edges." in key):
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@EVERY
def test_it_learns(name: str, inputs: Inputs) -> None:
    """Some steps on one batch lower the loss: gradients point the right way."""
    model = make(name)
    batch = inputs(model)
    goal = torch.randn_like(model(**batch))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(**batch) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@EVERY
def test_state_dict_round_trip(name: str, inputs: Inputs) -> None:
    first, second = make(name).eval(), make(name).eval()
    batch = inputs(first)
    assert not torch.equal(first(**batch), second(**batch))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(**batch), second(**batch))


@EVERY
def test_evaluation_is_deterministic(name: str, inputs: Inputs) -> None:
    model = make(name, dropout=0.5, input_dropout=0.5, attention_dropout=0.5)
    batch = inputs(model)
    assert not torch.equal(model(**batch), model(**batch))
    model.eval()
    assert torch.equal(model(**batch), model(**batch))


@EVERY
def test_autocast(name: str, inputs: Inputs) -> None:
    model = make(name).eval()
    batch = inputs(model)
    exact = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch)
    torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=0.1)


def test_the_list() -> None:
    assert list_models() == MODELS.names() == sorted(MODELS.names())
    with pytest.raises(ArgumentError, match="unknown model 'graph_transformer_zink'; did you mean"):
        create_model("graph_transformer_zink")
