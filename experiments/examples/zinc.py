"""Constrained solubility of molecules: GPS layers, or a graph transformer that reads the bonds, in batches of graphs.

    python zinc.py
    python zinc.py --conv transformer
    python zinc.py --train_graphs 2000 --epochs 20
    python zinc.py --dataset fake --epochs 2            # random graphs, nothing to download

To run it with PyG's layers, change the one import; nothing else differs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.nn import BatchNorm1d, Embedding, Linear, ModuleList, ReLU, Sequential
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINEConv, global_add_pool
from torch_geometric.transforms import AddRandomWalkPE

from graphattn.conv import GPSConv, TransformerConv  # was: from torch_geometric.nn import GPSConv, TransformerConv
from graphattn_datasets import load_dataset


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="zinc", help="zinc or fake")
    parser.add_argument("--train_graphs", type=int, default=10000)
    parser.add_argument("--conv", default="gps", choices=["gps", "transformer"])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--walk_length", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class Transformer(torch.nn.Module):
    """Attention along the bonds."""

    def __init__(self, channels, heads):
        super().__init__()
        self.conv = TransformerConv(channels, channels // heads, heads, edge_dim=channels)
        self.mlp = Sequential(Linear(channels, 2 * channels), ReLU(), Linear(2 * channels, channels))
        self.norm1, self.norm2 = BatchNorm1d(channels), BatchNorm1d(channels)

    def forward(self, x, edge_index, batch, edge_attr):
        x = self.norm1(x + self.conv(x, edge_index, edge_attr))
        return self.norm2(x + self.mlp(x))


def gps(channels, heads):
    """PyG's GINEConv along the bonds, beside attention between all atoms of a molecule."""
    mlp = Sequential(Linear(channels, channels), ReLU(), Linear(channels, channels))
    return GPSConv(channels, GINEConv(mlp), heads)


class Net(torch.nn.Module):
    def __init__(self, block, channels, heads, layers, walk_length):
        super().__init__()
        self.atom, self.bond = Embedding(28, channels), Embedding(4, channels)
        self.walk = Linear(walk_length, channels)
        self.blocks = ModuleList([block(channels, heads) for _ in range(layers)])
        self.last = Sequential(Linear(channels, channels // 2), ReLU(), Linear(channels // 2, 1))

    def forward(self, data):
        x = self.atom(data.x.squeeze(-1)) + self.walk(data.random_walk_pe)
        edge_attr = self.bond(data.edge_attr)
        for block in self.blocks:
            x = block(x, data.edge_index, data.batch, edge_attr=edge_attr)
        return self.last(global_add_pool(x, data.batch)).squeeze(-1)


def random_molecules(count, walk):
    """Rings of random atoms, to try the script with: the target is the number of atoms of one kind."""
    graphs = []
    for size in torch.randint(5, 30, (count,)).tolist():
        ring, atom = torch.arange(size), torch.randint(28, (size, 1))
        edge_index = torch.stack([torch.cat([ring, ring.roll(1)]), torch.cat([ring.roll(1), ring])])
        bond, y = torch.randint(4, (2 * size,)), (atom == 0).float().sum().view(1)
        graphs.append(walk(Data(x=atom, edge_index=edge_index, edge_attr=bond, y=y)))
    return graphs


def load(args):
    """Loaders of the training, the validation and the test graphs."""
    walk = AddRandomWalkPE(args.walk_length)
    if args.dataset == "fake":
        train, val, test = (random_molecules(count, walk) for count in (64, 32, 32))
    else:
        train, val, test = load_dataset(args.dataset, pre_transform=walk)
    train_loader = DataLoader(train[: args.train_graphs], args.batch_size, shuffle=True)
    return train_loader, DataLoader(val, 256), DataLoader(test, 256)


def build(args, loaders):
    block = gps if args.conv == "gps" else Transformer
    return Net(block, args.channels, args.heads, args.layers, args.walk_length).to(args.device)


def loss_of(model, data):
    return F.l1_loss(model(data), data.y)


@torch.no_grad()
def test(model, loader, device):
    model.eval()
    error = 0.0
    for data in loader:
        data = data.to(device)
        error += float((model(data) - data.y).abs().sum())
    return error / len(loader.dataset)


def fit(args, model, loaders):
    """Train; returns the test MAE of the epoch that was best on the validation graphs."""
    train_loader, val_loader, test_loader = loaders
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    best_val, best_test = float("inf"), float("inf")
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for data in train_loader:
            data = data.to(args.device)
            optimizer.zero_grad()
            loss = loss_of(model, data)
            loss.backward()
            optimizer.step()
            total += loss.item() * data.num_graphs
        schedule.step()
        val, tested = (test(model, loader, args.device) for loader in (val_loader, test_loader))
        if val < best_val:
            best_val, best_test = val, tested
        train = total / len(train_loader.dataset)
        print(f"Epoch: {epoch:03d}, Train: {train:.4f}, Val: {val:.4f}, Test: {tested:.4f}")
    return best_test


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(args.seed)
    loaders = load(args)
    model = build(args, loaders)
    print(f"Test MAE at the best validation MAE: {fit(args, model, loaders):.4f}")


if __name__ == "__main__":
    main()
