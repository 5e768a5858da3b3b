"""Which field of a minesweeper board hides a mine, by a small graph transformer.

    python minesweeper.py
    python minesweeper.py --conv gat
    python minesweeper.py --dataset generated --rows 30 # a board of one's own, nothing to download

To run it with PyG's layers, change the one import; nothing else differs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.nn import LayerNorm, Linear, ModuleList, Sequential
from torch_geometric.data import Data
from torch_geometric.transforms import RandomNodeSplit
from torch_geometric.utils import scatter
from torchmetrics.functional.classification import binary_auroc

from graphattn import patterns
from graphattn.conv import GATConv, TransformerConv  # was: from torch_geometric.nn import GATConv, TransformerConv
from graphattn_datasets import load_dataset

CONVS = {"gat": GATConv, "transformer": TransformerConv}


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="minesweeper", help="minesweeper or generated")
    parser.add_argument("--rows", type=int, default=100, help="rows and columns of a generated board")
    parser.add_argument("--conv", default="transformer", choices=CONVS)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class Block(torch.nn.Module):
    """A pre-norm transformer block whose attention is the layer."""

    def __init__(self, conv, channels, heads, dropout):
        super().__init__()
        self.dropout = dropout
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.conv = conv(channels, channels // heads, heads)
        self.mlp = Sequential(Linear(channels, 2 * channels), torch.nn.GELU(), Linear(2 * channels, channels))

    def forward(self, x, edge_index):
        x = x + F.dropout(self.conv(self.norm1(x), edge_index), p=self.dropout, training=self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), p=self.dropout, training=self.training)


class Net(torch.nn.Module):
    def __init__(self, conv, in_channels, channels, heads, layers, dropout):
        super().__init__()
        self.first = Linear(in_channels, channels)
        self.blocks = ModuleList([Block(conv, channels, heads, dropout) for _ in range(layers)])
        self.last = Sequential(LayerNorm(channels), Linear(channels, 1))

    def forward(self, x, edge_index):
        x = self.first(x)
        for block in self.blocks:
            x = block(x, edge_index)
        return self.last(x).squeeze(-1)


def generate(rows):
    """A board as in Platonov et al., arXiv 2302.11640: 20 % mines; half of the fields show their count of mines."""
    edge_index = patterns.grid(rows, rows, neighbours=8).edge_index
    y = (torch.rand(rows * rows) < 0.2).long()
    count = scatter(y[edge_index[0]], edge_index[1], dim_size=rows * rows)
    hidden = torch.rand(rows * rows) < 0.5
    x = torch.cat([F.one_hot(count, 9) * ~hidden[:, None], hidden[:, None]], dim=1).float()
    return RandomNodeSplit(num_val=0.25, num_test=0.25)(Data(x=x, edge_index=edge_index, y=y))


def load(args):
    data = generate(args.rows) if args.dataset == "generated" else load_dataset(args.dataset)[0]
    return data.to(args.device)


def build(args, data):
    model = Net(CONVS[args.conv], data.num_features, args.channels, args.heads, args.layers, args.dropout)
    return model.to(args.device)


def loss_of(model, data):
    out = model(data.x, data.edge_index)
    return F.binary_cross_entropy_with_logits(out[data.train_mask], data.y[data.train_mask].float())


@torch.no_grad()
def test(model, data):
    model.eval()
    out = model(data.x, data.edge_index)
    masks = (data.train_mask, data.val_mask, data.test_mask)
    return [100 * float(binary_auroc(out[mask], data.y[mask])) for mask in masks]


def fit(args, model, data):
    """Train; returns the test ROC-AUC of the epoch that was best on the validation nodes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    best_val = best_test = 0.0
    for epoch in range(1, args.epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        optimizer.step()
        train, val, tested = test(model, data)
        if val > best_val:
            best_val, best_test = val, tested
        print(f"Epoch: {epoch:03d}, Loss: {loss:.4f}, Train: {train:.2f}, Val: {val:.2f}, Test: {tested:.2f}")
    return best_test


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(args.seed)
    data = load(args)
    model = build(args, data)
    print(f"Test ROC-AUC at the best validation ROC-AUC: {fit(args, model, data):.2f} %")


if __name__ == "__main__":
    main()
