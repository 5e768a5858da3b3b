"""One operation, many mechanisms: attention over a token graph is what the graph says it is. Draws the graphs.

    python token_graphs.py
    python token_graphs.py --tokens 4096 --picture ""   # no picture

Each graph is a term of patterns and of graphs of yours; `attend` is the same call for all of them.
"""

import argparse

import torch

from graphattn import TokenGraph, attend, explain, patterns


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64, help="a square number")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--channels", type=int, default=16, help="of each head")
    parser.add_argument("--picture", default="token_graphs.png")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def graphs(n, generator):
    """Who may read whom, by the name of the paper that it is the attention of."""
    side = int(n**0.5)
    ring = torch.arange(n)
    edge_index = torch.stack([torch.cat([ring, ring.roll(1)]), torch.cat([ring.roll(1), ring])])
    graph = TokenGraph.from_edge_index(edge_index, num_tokens=n)  # any graph of yours
    longformer = patterns.window(n, 9) | patterns.hubs(n, 2)
    return {
        "Transformer": patterns.complete(n),
        "GPT": patterns.causal(n),
        "Longformer": longformer,
        "BigBird": longformer | patterns.random_regular(n, 4, generator=generator),
        "Sparse Transformer": patterns.window(n, 9, causal=True) | patterns.strided(n, side, causal=True),
        "pixels and their neighbours": patterns.grid(side, side, radius=2, self_loops=True),
        "a batch, never padded": patterns.blocks([0, n // 8, n // 2, n]),
        "graph transformer": graph,
        "within two hops": graph.power(2).with_self_loops(),
        "Exphormer": graph | patterns.expander(n, 4, generator=generator) | patterns.hubs(n, 1),
    }


def draw(found, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = (len(found) + 1) // 2
    figure = Figure(figsize=(2.3 * columns, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, columns).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, graph) in zip(figure.axes, found.items(), strict=False):
        axes.set_axis_on()
        axes.imshow(graph.to_dense(), cmap="Blues", vmin=0, vmax=1.3)
        axes.set_title(f"{name}\n{graph.num_edges:,} edges", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.supxlabel("source (is read)", fontsize=9)
    figure.supylabel("target (reads)", fontsize=9)
    figure.savefig(path, dpi=150)


def main(argv=None):
    args = parse(argv)
    if int(args.tokens**0.5) ** 2 != args.tokens:
        raise SystemExit(f"--tokens must be a square number, for the pixels; got {args.tokens}")
    generator = torch.Generator().manual_seed(args.seed)
    q, k, v = torch.randn(3, args.tokens, args.heads, args.channels, generator=generator)
    found = graphs(args.tokens, generator)
    for name, graph in found.items():
        out = attend(graph, q, k, v)
        choice = explain(graph, q, k, v)
        print(f"{name:28s} {graph.num_edges:8,} edges, out {list(out.shape)} by {choice.backend!r}")
    if args.picture:
        draw(found, args.picture)
        print(f"drawn in {args.picture}")


if __name__ == "__main__":
    main()
