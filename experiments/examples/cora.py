"""Nodes of a citation graph, by two layers of attention (after PyG's examples/gat.py).

    python cora.py
    python cora.py --conv transformer --dataset citeseer
    python cora.py --dataset fake --epochs 5            # random data, nothing to download

To run it with PyG's layers, change the one import; nothing else differs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch_geometric.datasets import FakeDataset
from torch_geometric.transforms import Compose, NormalizeFeatures, RandomNodeSplit

from graphattn.conv import GATConv, TransformerConv  # was: from torch_geometric.nn import GATConv, TransformerConv
from graphattn_datasets import load_dataset

CONVS = {"gat": GATConv, "transformer": TransformerConv}


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="cora", help="cora, citeseer, pubmed or fake")
    parser.add_argument("--conv", default="gat", choices=CONVS)
    parser.add_argument("--hidden_channels", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.6)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class Net(torch.nn.Module):
    def __init__(self, conv, in_channels, hidden_channels, out_channels, heads, dropout):
        super().__init__()
        self.dropout = dropout
        self.conv1 = conv(in_channels, hidden_channels, heads, dropout=dropout)
        self.conv2 = conv(hidden_channels * heads, out_channels, heads=1, concat=False, dropout=dropout)

    def forward(self, x, edge_index):
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, p=self.dropout, training=self.training)
        return self.conv2(x, edge_index)


def load(args):
    if args.dataset == "fake":
        transform = Compose([NormalizeFeatures(), RandomNodeSplit(num_val=0.2, num_test=0.2)])
        dataset = FakeDataset(1, avg_num_nodes=200, num_channels=32, num_classes=4, transform=transform)
    else:
        dataset = load_dataset(args.dataset, transform=NormalizeFeatures())
    return dataset[0].to(args.device)


def build(args, data):
    classes = int(data.y.max()) + 1
    model = Net(CONVS[args.conv], data.num_features, args.hidden_channels, classes, args.heads, args.dropout)
    return model.to(args.device)


def loss_of(model, data):
    out = model(data.x, data.edge_index)
    return F.cross_entropy(out[data.train_mask], data.y[data.train_mask])


@torch.no_grad()
def test(model, data):
    model.eval()
    correct = model(data.x, data.edge_index).argmax(dim=-1) == data.y
    return [100 * float(correct[mask].float().mean()) for mask in (data.train_mask, data.val_mask, data.test_mask)]


def fit(args, model, data):
    """Train; returns the test accuracy of the epoch that was best on the validation nodes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=5e-4)
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
    print(f"Test accuracy at the best validation accuracy: {fit(args, model, data):.2f} %")


if __name__ == "__main__":
    main()
