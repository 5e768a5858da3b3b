"""What is captured is what the layers weigh, of our models and of Hugging Face's, and nothing changes for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graphattn import TokenGraph, attend, edge_weights, patterns
from graphattn._watch import watching
from graphattn.insight import KeptMaps, ReceivedAttention, SkewedLines, capture, record, waad
from graphattn.mechanisms import MultiheadAttention
from graphattn.models.sequence import CausalTransformer
from graphattn_kernels import backends


@pytest.fixture(autouse=True)
def _gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)


ALL = {"received": ReceivedAttention, "waad": waad, "lines": SkewedLines, "map": lambda: KeptMaps(3)}


def model_of(**options: object) -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(11, width=16, heads=2, layers=2, **options).eval()


TOKENS = torch.randint(11, (3, 13), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_our_layers_are_captured_edge_by_edge_and_column_by_column_alike() -> None:
    model = model_of()
    before = model(TOKENS)
    with capture(model, ALL) as by_edge:
        out = model(TOKENS)
    with capture(model, ALL, max_weights=0) as by_column:
        model(TOKENS)
    with record(model) as layers:
        model(TOKENS)
    assert torch.equal(out, before) and not watching()
    assert (
        [entry.layer for entry in by_edge] == [entry.layer for entry in by_column] == ["blocks.0.attn", "blocks.1.attn"]
    )
    for entry, other, kept in zip(by_edge, by_column, layers, strict=True):
        torch.testing.assert_close(other.results, entry.results, rtol=1e-5, atol=1e-6)
        source, target = kept.graph.edge_index
        dense = torch.zeros(3, 2, 13, 13)
        dense[..., target, source] = kept.weights.movedim(-1, -2)
        torch.testing.assert_close(entry.results["map"], dense.mean(1).double())
        readers = torch.ones(13, 13).tril().sum(0)
        torch.testing.assert_close(entry.results["received"].attention, (dense.sum(-2) / readers).double())


@torch.no_grad()
def test_windows_of_prompts_with_a_graph_for_each() -> None:
    model = model_of()
    node_of_token = torch.tensor([[-1, 0, 1, 2, 3, -1, -1], [-1, -1, 0, 1, 2, -1, -1]])
    parent = torch.tensor([[-1, 0, 1, 0], [-1, 0, 1, -1]])
    mask = torch.tensor([[True] * 7, [True] * 6 + [False]])
    graph = patterns.graph_window(node_of_token, parent, 1, "bidi", mask=mask)
    found = []
    for most in (1 << 20, 0):
        with capture(model, ALL, max_weights=most) as layers:
            model.features(TOKENS[:2, :7], graph=graph)
        found.append(layers)
    dense = graph.to_dense()
    for entry, other in zip(*found, strict=True):
        torch.testing.assert_close(other.results, entry.results, rtol=1e-5, atol=1e-6)
        assert torch.equal(entry.results["map"] > 0, dense)
        assert torch.equal(entry.results["received"].readers[:, 0], dense.sum(-2))


@torch.no_grad()
def test_gates_and_ready_scores_too() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1, 2, 2, 0], [1, 2, 1, 0, 0]]))
    q, k, v = torch.randn(3, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    expected = edge_weights(graph, q, k, edge_bias=bias)
    for most in (1000, 0):
        with capture(nn.Identity(), {"map": lambda: KeptMaps(1)}, max_weights=most) as found:
            attend(graph, q, k, v, edge_bias=bias)
            attend(graph, None, None, v, score=expected, normalizer="sum")
        for entry in found:
            source, target = graph.edge_index
            torch.testing.assert_close(entry.results["map"][0, target, source], expected.mean(-1).double())
        assert [entry.layer for entry in found] == ["", ""]


def test_gradients_go_on_and_errors_leave_nothing_behind() -> None:
    layer, x = MultiheadAttention(8, 2), torch.randn(5, 8)
    with capture(layer, ALL) as found:
        layer(x, patterns.complete(5))[0].sum().backward()
    assert len(found) == 1 and layer.out_proj.weight.grad is not None
    with pytest.raises(ZeroDivisionError), capture(layer, ALL):
        raise ZeroDivisionError
    assert not watching() and not layer._forward_hooks


def hugging_face(kind: str, implementation: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    else:
        config = transformers.LlamaConfig(
            vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32,
        )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_hugging_face_models_are_captured_whatever_their_implementation(kind: str, implementation: str) -> None:
    """Against the weights that the eager implementation returns; the second prompt is padded on the left."""
    model, eager = hugging_face(kind, implementation), hugging_face(kind, "eager")
    model.load_state_dict(eager.state_dict())
    mask = torch.ones_like(TOKENS)
    mask[1, :4] = 0
    there = mask.bool()
    expected = eager(TOKENS, attention_mask=mask, output_attentions=True).attentions
    before = model(TOKENS, attention_mask=mask).logits
    targets = there.unsqueeze(1)
    with capture(model, {**ALL, "received": lambda: ReceivedAttention(targets)}) as found:
        out = model(TOKENS, attention_mask=mask).logits
    assert torch.equal(out, before)
    assert len(found) == 2 and found[0].layer.endswith(("layers.0.self_attn", "h.0.attn"))
    readers = (torch.ones(13, 13).tril().bool() & there[:, :, None] & there[:, None, :]).sum(1)
    for entry, weights in zip(found, expected, strict=True):
        rows = there[:, :, None]
        torch.testing.assert_close(entry.results["map"] * rows, weights.double().mean(1) * rows)
        received = entry.results["received"]
        assert torch.equal(received.readers, readers.unsqueeze(1).expand_as(received.readers))
        total = (weights.double() * there[:, None, :, None]).sum(-2)
        torch.testing.assert_close(received.attention, total / readers.clamp(min=1).unsqueeze(1))


@torch.no_grad()
def test_decoding_with_a_cache_leaves_no_entry_and_other_models_are_not_seen() -> None:
    model, other = hugging_face("llama", "sdpa"), hugging_face("llama", "sdpa")
    with capture(model, ALL) as found:
        cache = model(TOKENS, use_cache=True).past_key_values
        model(TOKENS[:, :1], past_key_values=cache)
        other(TOKENS)
    assert len(found) == 2


class _Largest(TorchDispatchMode):
    """The most numbers of one tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        found = [
            x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if isinstance(x, torch.Tensor)
        ]
        self.numbers = max(self.numbers, *found, 0)
        return out


@pytest.mark.parametrize("kind", ["ours", "llama"])
@torch.no_grad()
def test_nothing_of_the_size_of_the_map_is_made(kind: str) -> None:
    model = model_of(backend="sdpa") if kind == "ours" else hugging_face("llama", "sdpa")
    if kind == "llama":
        model.config.max_position_embeddings = 1024
    tokens = torch.randint(11, (1, 320), generator=torch.Generator().manual_seed(0))
    kept = {name: ALL[name] for name in ("received", "waad", "lines")}
    with capture(model, kept, max_weights=320) as found, _Largest() as largest:
        model(tokens)
    assert len(found) == 2
    assert largest.numbers < 320 * 320 // 4
    even = torch.arange(320, dtype=torch.float64)
    assert bool((found[0].results["waad"] <= even.clamp(max=10)).all())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ours", "llama", "gpt2"])
@torch.no_grad()
def test_on_a_gpu_it_is_what_it_is_on_the_cpu(kind: str) -> None:
    model = model_of() if kind == "ours" else hugging_face(kind, "sdpa")
    found = []
    for device, most in (("cpu", 1 << 25), ("cuda", 1 << 25), ("cuda", 0)):
        with capture(model.to(device), ALL, max_weights=most) as layers:
            model(TOKENS.to(device))
        found.append([torch.utils._pytree.tree_map(lambda x: x.cpu(), entry.results) for entry in layers])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
