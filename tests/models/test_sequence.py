"""The causal language model: what it may read, caches, padding, positions, generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graphattn import TokenGraph, patterns
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.mechanisms import MultiheadAttention, sampling
from graphattn.models._sequence_graph import token_graph
from graphattn.models.generation import KeyValueCache, draw_next
from graphattn.models.sequence import CausalTransformer

VOCAB = 13
KINDS: dict[str, dict[str, Any]] = {
    "multihead": {},
    "learned": {"positions": "learned", "context": 40, "norm": "layer"},
    "none": {"positions": "none", "tie_weights": False},
    "graph_transformer": {"attention": "graph_transformer"},
    "egt": {"attention": "egt"},
    "ssa": {"attention": "ssa", "attention_options": {"attention": "graph_transformer"}},
    "window": {"graph": lambda n: patterns.window(n, 3, causal=True)},
    "linear_infsa": {"attention": "linear_infsa", "positions": "learned", "context": 40},
}
RULES: dict[str, Callable[[int], TokenGraph]] = {  # what the first tokens are matters in most
    "hubs": lambda n: patterns.window(n, 1, causal=True) | (patterns.hubs(n, min(n, 2)) & patterns.causal(n)),
    "transposed": lambda n: patterns.hubs(n, 1) & patterns.window(n, n, causal=True).T.T - patterns.window(n, 0),
    "prefix": lambda n: patterns.prefix(n, min(n, 3)),
    "strided": lambda n: patterns.strided(n, 3, causal=True),
    "part": lambda n: patterns.window(n, n // 3, causal=True),
    "explicit": lambda n: TokenGraph.from_adj_t(torch.ones(n, n).tril().bool() & (torch.arange(n) % 3 != 1)),
}
RULED = pytest.mark.parametrize("rule", list(RULES))
EVERY = pytest.mark.parametrize("kind", list(KINDS))
CACHED = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear_infsa"])


def make(kind: str = "multihead", **options: Any) -> CausalTransformer:
    torch.manual_seed(0)
    model = CausalTransformer(VOCAB, 16, 2, 2, **{**KINDS[kind], **options}).double().eval()
    for parameter in model.parameters():  # larger than they are drawn, so that attention matters
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def text(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_equal_to_a_transformer_written_out() -> None:
    model, tokens = make(), text(2, 9)
    x = model.embed(tokens)
    angle = torch.arange(9)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8).double()

    def turn(rows: Tensor) -> Tensor:
        pair = torch.complex(rows[..., :4], rows[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pair.real, pair.imag], -1)

    for block in model.blocks:
        attention, rows = block.attn, block.norm1(x)
        qkv = F.linear(rows, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in qkv.chunk(3, -1))
        out = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + attention.out_proj(out.transpose(1, 2).flatten(-2))
        x = x + block.mlp.outer(F.gelu(block.mlp.inner(block.norm2(x))))
    close(model(tokens), model.norm(x) @ model.embed.weight.T)
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    close(model.loss(tokens), loss)
    close(model.loss(tokens, reduction="none").sum() / 16, loss)


@EVERY
def test_nothing_of_the_future_is_read(kind: str) -> None:
    model, tokens = make(kind), text(2, 12)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    close(before[:, :7], after[:, :7], 0.0)
    assert (before[:, 7] - after[:, 7]).abs().max() > 1e-3
    assert (before[:, 9] - after[:, 9]).abs().max() > 1e-6


@pytest.mark.parametrize(
    "options", [{"attention": "infsa"}, {"attention": "ssa", "attention_options": {"attention": "infsa"}}]
)
def test_a_norm_over_all_tokens_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ArgumentError, match="attention must not be InfSA in a causal network: its norm is over all edges"
    ):
        make(**options, positions="learned", context=40)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in SSA"])
@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("selector", ["oracle", "random", "window"])
def test_nothing_of_the_future_is_read_or_chosen_by(selector: str, positions: str, inside: bool) -> None:
    """Sparsifiner, but for its predictor, which is refused: the future would move the past through its choice."""
    options: dict[str, Any] = {"selector": selector, "keep": 0.3, "grid_size": (3, 4)}
    named: dict[str, Any] = {"attention": "sparsifiner", "attention_options": options}
    if inside:
        named = {"attention": "ssa", "attention_options": {**named, "keep": 0.6, "minimum": 2}}
    model, tokens = make(**named, positions=positions, context=40), text(2, 12)
    assert not model.can_cache
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    found = []
    for row in (tokens, changed):
        if inside:
            with sampling(model, True, torch.Generator().manual_seed(0)):
                found.append(model(row))
        else:
            found.append(model(row))
    close(found[0][:, :7], found[1][:, :7], 0.0)
    assert (found[0][:, 7] - found[1][:, 7]).abs().max() > 1e-3
    for refused in (
        {"attention": "sparsifiner"},
        {"attention": "ssa", "attention_options": {"attention": "sparsifiner"}},
    ):
        with pytest.raises(ArgumentError, match="selector must be 'oracle', 'window' or 'random' in a causal network"):
            make(**refused, positions=positions, context=40)


@CACHED
def test_kept_keys_and_values_change_nothing(kind: str) -> None:
    model, tokens = make(kind), text(3, 12)
    cache, whole = KeyValueCache(), model(tokens)
    pieces = [model(part, cache=cache) for part in tokens.split([5, 1, 1, 3, 2], dim=1)]
    close(torch.cat(pieces, 1), whole)
    assert cache.length == 12
    for row in (tokens, tokens[0]):
        kept, again = (model.generate(row, 8, 0.0, use_cache=use) for use in (True, False))
        assert torch.equal(kept, again) and kept.shape[-1] == 20
    single = make(kind).float()
    parts = KeyValueCache(12)
    pieces = [single(part, cache=parts) for part in tokens.split([7, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), single(tokens), atol=1e-4, rtol=1e-5)


def test_a_mechanism_without_rows_of_its_own_is_computed_again() -> None:
    model = make("linear_infsa")
    assert not model.can_cache and make().can_cache
    tokens = text(2, 6)
    found = model.generate(tokens, 4, 0.0)
    step = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found[:, :7], step)
    with pytest.raises(ArgumentError, match="use_cache must be False"):
        model.generate(tokens, 2, use_cache=True)


def test_a_window_of_walks_is_computed_again_unless_they_lead_nowhere_else() -> None:
    model = make(attention="graph_window", graph=lambda n: patterns.window(n, 3, causal=True))
    assert not model.can_cache and make(attention="graph_window").can_cache
    tokens = text(2, 8)
    assert torch.equal(model.generate(tokens, 6, 0.0), model.generate(tokens, 6, 0.0, use_cache=False))


@EVERY
def test_pieces_and_padding_equal_texts_alone(kind: str) -> None:
    model, rows = make(kind), [text(5), text(9) + 0, text(3)]
    alone = [model(row) for row in rows]
    ptr = torch.tensor([0, 5, 14, 17])
    together = model(torch.cat(rows), ptr=ptr)
    for (begin, end), wanted in zip([(0, 5), (5, 14), (14, 17)], alone, strict=True):
        close(together[begin:end], wanted)
    for left in (True, False):
        padded, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
        for n, row in enumerate(rows):
            place = slice(9 - len(row), 9) if left else slice(0, len(row))
            padded[n, place], mask[n, place] = row, True
        out = model(padded, mask=mask)
        for found, there, wanted in zip(out, mask, alone, strict=True):
            close(found[there], wanted)
        targets = [F.cross_entropy(a[:-1], row[1:], reduction="sum") for a, row in zip(alone, rows, strict=True)]
        close(model.loss(padded, mask=mask), sum(targets) / 14)
        longer = model.generate(padded, 4, 0.0, mask=mask)
        for n, row in enumerate(rows):
            assert torch.equal(longer[n, 9:], model.generate(row, 4, 0.0)[len(row) :])
    close(model.loss(torch.cat(rows), ptr=ptr), sum(targets) / 14)


@RULED
def test_places_of_a_rule_are_those_in_the_text(rule: str) -> None:
    model, rows = make(graph=RULES[rule]), [text(5), text(0), text(9) + 0, text(1), text(5)]
    ptr = torch.tensor([0, 5, 5, 14, 15, 20])
    together = model(torch.cat(rows), ptr=ptr).split([len(row) for row in rows])
    for found, row in zip(together, rows, strict=True):
        if len(row):
            close(found, model(row))
    tokens = text(3, 7)
    close(model(tokens, mask=torch.ones(3, 7, dtype=torch.bool)), model(tokens))
    absent = torch.ones(3, 7, dtype=torch.bool)
    absent[0] = False
    close(model(tokens, mask=absent)[1:], model(tokens)[1:])
    assert model(tokens, mask=torch.zeros_like(absent)).shape == (3, 7, VOCAB)


@pytest.mark.parametrize("rule", ["hubs", "prefix", "strided", "explicit"])
def test_padded_texts_go_on_alike_with_and_without_a_cache(rule: str) -> None:
    """All texts have the three tokens of the prefix, so that what was read stays what is read."""
    model, tokens = make(graph=RULES[rule], tie_weights=False), text(8, 7)
    mask = torch.arange(7) >= torch.tensor([0, 2, 3, 1, 3, 0, 2, 4])[:, None]
    assert model.generate(tokens[:0], 3, mask=mask[:0]).shape == (0, tokens.shape[1] + 3)
    found = model.generate(tokens, 8, 0.0, mask=mask, use_cache=True)
    assert torch.equal(found, model.generate(tokens, 8, 0.0, mask=mask, use_cache=False))
    for n, there in enumerate(mask):
        assert torch.equal(found[n, 7:], model.generate(tokens[n, there], 8, 0.0)[int(there.sum()) :])


def _packed(rule: Callable[[int], TokenGraph], ptr: Tensor) -> TokenGraph:
    return token_graph(rule, torch.zeros(int(ptr[-1]), 4), 0, ptr, None)


@pytest.mark.parametrize("rule", [*RULES, "window"])
def test_the_graph_of_texts_in_one_row(rule: str) -> None:
    make_one = RULES[rule] if rule in RULES else lambda n: patterns.window(n, 2, causal=True)
    ptr = torch.tensor([0, 5, 5, 14, 15, 20])
    graph = _packed(make_one, ptr)
    wanted = torch.block_diag(*(make_one(size).to_dense().float() for size in (5, 9, 1, 5))).bool()
    assert torch.equal(graph.to_dense(), wanted) and graph.num_members == 5


def test_a_rule_of_distances_over_texts_in_one_row_lists_no_edges() -> None:
    ptr = torch.tensor([0, 60_000, 100_000])
    for rule in (patterns.causal, lambda n: patterns.window(n, 300, causal=True) - patterns.window(n, 0)):
        graph = _packed(rule, ptr)
        assert graph.pattern is not None and graph._csr is None
    with pytest.raises(ArgumentError, match="graph must give a graph over 8 tokens, got 9"):
        _packed(lambda n: patterns.causal(n + 1), torch.tensor([0, 3, 8]))


def test_graphs_embeddings_and_positions_of_ones_own() -> None:
    model, tokens = make(), text(2, 8)
    close(model(inputs_embeds=model.embed(tokens)), model(tokens))
    close(model(tokens, graph=patterns.causal(8)), model(tokens))
    explicit = TokenGraph.from_edge_index(patterns.causal(8).edge_index, 8)
    close(model(tokens, graph=explicit), model(tokens))
    close(model(tokens, positions=torch.arange(8) + 100), model(tokens), 1e-9)  # only distances count
    assert (model(tokens, positions=torch.arange(8) * 2) - model(tokens)).abs().max() > 1e-3
    both = model(tokens, graph=patterns.complete(8))
    assert (both[:, 0] - model(tokens)[:, 0]).abs().max() > 1e-3
    each = TokenGraph.stack([patterns.causal(8), patterns.window(8, 2, causal=True)])
    found = model(tokens, graph=each)
    close(found[0], model(tokens)[0])
    close(found[1], model(tokens[1], graph=patterns.window(8, 2, causal=True)))


def test_edge_rows_reach_every_block() -> None:
    model = make(edge_width=3)
    tokens, graph = text(7), patterns.causal(7)
    edge = torch.randn(graph.num_edges, 3, dtype=torch.float64, requires_grad=True)
    model(tokens, edge=edge).square().sum().backward()
    assert edge.grad is not None and edge.grad.abs().max() > 0


def test_training_with_ssa_draws_and_gives_gradients() -> None:
    model = make("ssa", attention_options={"keep": 0.25, "minimum": 2}).train()
    tokens = text(4, 24)
    first, second = model.loss(tokens), model.loss(tokens)
    assert first != second
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    changed = tokens.clone()
    changed[:, 15:] = 0
    with sampling(model.eval(), True, torch.Generator().manual_seed(0)) as modules:
        before = model(tokens)
        modules[0].generator.manual_seed(0)
        close(before[:, :15], model(changed)[:, :15], 0.0)  # a drawn graph is causal, too


def test_checkpointing_changes_nothing() -> None:
    model, tokens = make(), text(2, 8)
    plain = torch.autograd.grad(model.loss(tokens), list(model.parameters()))
    model.set_grad_checkpointing()
    for mine, theirs in zip(torch.autograd.grad(model.loss(tokens), list(model.parameters())), plain, strict=True):
        close(mine, theirs)


def test_checkpointing_and_a_cache() -> None:
    """Nothing is kept twice, though the backward pass would compute blocks again."""
    model, tokens, cache = make(), text(2, 8), KeyValueCache()
    model.set_grad_checkpointing()
    model(tokens, cache=cache).sum().backward()
    assert cache.length == 8


def test_checkpointing_draws_the_same_subgraphs() -> None:
    grads = []
    for enable in (False, True):
        model = make("ssa", attention_options={"keep": 0.25, "minimum": 2})
        model.set_grad_checkpointing(enable)
        with sampling(model, True, torch.Generator().manual_seed(0)):
            grads.append(torch.autograd.grad(model.loss(text(4, 24)), list(model.parameters())))
    for one, other in zip(*grads, strict=True):
        close(one, other)


def test_generation_leaves_every_mode_as_it_was() -> None:
    model = make().train()
    model.blocks[0].eval()
    model.generate(text(2, 5), 2)
    assert model.training and model.blocks[1].training and not model.blocks[0].training


def test_tokens_of_32_bits() -> None:
    model, tokens = make(), text(2, 9)
    assert torch.equal(model.loss(tokens.int()), model.loss(tokens))


def test_sampling_tokens() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    drawn = draw_next(logits, 1.0, None, torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.015, rtol=0)
    two = draw_next(logits, 1.0, 2, torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000
    torch.testing.assert_close(two, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015, rtol=0)
    assert draw_next(torch.zeros(500, 4), 1.0, 2).unique().numel() == 2  # of equals, too
    assert draw_next(torch.tensor([1.0, 50.0]), 1e-38) == 1
    assert draw_next(logits, 0.0).eq(0).all()
    assert draw_next(logits[0], 1.0).shape == () and make().generate(text(1, 5)[0], 3).shape == (8,)
    model, tokens = make(), text(2, 5)
    found = [model.generate(tokens, 6, 1.0, 5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    stop = int(found[0][0, 5])
    ended = model.generate(tokens[:1], 6, 1.0, 5, torch.Generator().manual_seed(0), stop=stop)
    assert ended[0, -1] == stop
    assert model.train().generate(tokens, 1).shape == (2, 6) and model.training


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="GatedGCN does not; use positions='learned'"):
        CausalTransformer(VOCAB, 16, 2, 1, attention="gated_gcn")
    with pytest.raises(ArgumentError, match="needs context"):
        CausalTransformer(VOCAB, 16, 2, 1, positions="learned")
    for options, message in (({"norm": "batch"}, "norm must be"), ({"positions": "sine"}, "positions must be")):
        with pytest.raises(ArgumentError, match=message):
            CausalTransformer(VOCAB, 16, 2, 1, **options)
    model, tokens = make(), text(2, 6)
    with pytest.raises(ArgumentError, match="give either tokens or inputs_embeds"):
        model()
    with pytest.raises(ArgumentTypeError, match="tokens must be integers"):
        model(tokens.double())
    with pytest.raises(ArgumentError, match="ptr is for one row of tokens"):
        model(tokens, ptr=torch.tensor([0, 6]))
    with pytest.raises(ArgumentError, match=r"mask must be \[B, N\] for rows"):
        model(tokens, mask=torch.ones(2, 5, dtype=torch.bool))
    for wrong in ([0, 4], [0, 9], [1, 6], [0, 5, 3, 6]):
        with pytest.raises(ArgumentError, match="ptr must rise from 0 to the number of tokens, 6, got"):
            model(tokens[0], ptr=torch.tensor(wrong))
    cache = KeyValueCache()
    model(tokens, cache=cache)
    with pytest.raises(ArgumentError, match=r"mask must be \[B, N\] for rows \[2, 1, 16\] after 6 that are kept, got"):
        model(tokens[:, :1], cache=cache, mask=torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ArgumentError, match=r"learned positions are for 40 tokens \(context\), got 41"):
        make("learned")(text(1, 41))
    with pytest.raises(ArgumentError, match=r"learned positions are for 40 tokens \(context\), got 41"):
        make("learned").generate(text(1, 39), 4)
    for inputs in ({"mask": torch.ones(1, 41, dtype=torch.bool)}, {"positions": torch.arange(41)}):
        with pytest.raises(ArgumentError, match=r"learned positions are for 40 tokens \(context\), got 41"):
            make("learned")(text(1, 41), **inputs)
    assert make("learned")(text(1, 45), mask=(torch.arange(45) > 4).unsqueeze(0)).isfinite().all()
    with pytest.raises(ArgumentError, match="mask must leave at least one token of each text"):
        model.generate(tokens, 2, mask=torch.tensor([[True], [False]]).expand(2, 6))
    with pytest.raises(ArgumentError, match="ptr and mask do not go with graph"):
        model(tokens, graph=patterns.causal(6), mask=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="at least one token"):
        model.generate(tokens[:, :0], 3)
    with pytest.raises(ArgumentError, match="temperature must be 0 or more"):
        model.generate(tokens, 3, -1.0)
    made = CausalTransformer(VOCAB, 16, 2, 1, attention=lambda w, h, e: MultiheadAttention(w, h, e, bias=False))
    assert made.blocks[0].attn.in_proj_bias is None
