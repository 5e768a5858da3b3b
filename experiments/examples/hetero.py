"""A graph of two kinds of nodes: papers that cite each other, and the words that they hold.

    python hetero.py
    python hetero.py --conv transformer                 # one layer for each kind of edge, by PyG's to_hetero
    python hetero.py --dataset fake --epochs 5          # random data, nothing to download

To run it with PyG's layers, change the one import; nothing else differs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.nn import LayerNorm, Linear, ModuleDict, ModuleList
from torch_geometric.data import HeteroData
from torch_geometric.datasets import FakeDataset
from torch_geometric.nn import to_hetero
from torch_geometric.transforms import RandomNodeSplit

from graphattn.conv import HGTConv, TransformerConv  # was: from torch_geometric.nn import HGTConv, TransformerConv
from graphattn_datasets import load_dataset


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="cora", help="cora, citeseer or fake")
    parser.add_argument("--conv", default="hgt", choices=["hgt", "transformer"])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class HGT(torch.nn.Module):
    def __init__(self, data, channels, heads, classes, dropout):
        super().__init__()
        self.dropout = dropout
        widths = {kind: data[kind].num_features for kind in data.node_types}
        self.first = ModuleDict({kind: Linear(width, channels) for kind, width in widths.items()})
        self.norm = ModuleDict({kind: LayerNorm(channels) for kind in widths})
        self.convs = ModuleList([HGTConv(channels, channels, data.metadata(), heads) for _ in range(2)])
        self.last = Linear(channels, classes)

    def forward(self, x_dict, edge_index_dict):
        x_dict = {kind: F.dropout(x, self.dropout, self.training) for kind, x in x_dict.items()}
        x_dict = {kind: self.norm[kind](self.first[kind](x)).relu() for kind, x in x_dict.items()}
        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)
        return {"paper": self.last(F.dropout(x_dict["paper"], self.dropout, self.training))}


class Transformer(torch.nn.Module):
    """A network for one kind of node and edge: ``to_hetero`` makes the one for all kinds."""

    def __init__(self, channels, heads, classes, dropout):
        super().__init__()
        self.dropout = torch.nn.Dropout(dropout)
        self.conv1 = TransformerConv((-1, -1), channels // heads, heads)
        self.conv2 = TransformerConv((-1, -1), classes, heads, concat=False)

    def forward(self, x, edge_index):
        x = self.conv1(self.dropout(x), edge_index).relu()
        return self.conv2(self.dropout(x), edge_index)


def load(args):
    """The graph, and its papers' classes and masks."""
    if args.dataset == "fake":
        split = RandomNodeSplit(num_val=0.2, num_test=0.2)
        graph = FakeDataset(1, avg_num_nodes=200, num_channels=32, num_classes=4, transform=split)[0]
        graph.x = (graph.x > 1).float()
    else:
        graph = load_dataset(args.dataset)[0]
    data = HeteroData()
    data["paper"].x = graph.x / graph.x.sum(dim=1, keepdim=True).clamp(min=1)
    data["word"].x = torch.eye(graph.num_features)
    for name in ("y", "train_mask", "val_mask", "test_mask"):
        data["paper"][name] = graph[name]
    held = graph.x.nonzero().t().contiguous()
    data["paper", "cites", "paper"].edge_index = graph.edge_index
    data["word", "in", "paper"].edge_index = held.flip(0)
    data["paper", "holds", "word"].edge_index = held
    return data.to(args.device)


def build(args, data):
    classes = int(data["paper"].y.max()) + 1
    if args.conv == "hgt":
        model = HGT(data, args.channels, args.heads, classes, args.dropout).to(args.device)
    else:
        model = Transformer(args.channels, args.heads, classes, args.dropout)
        model = to_hetero(model, data.metadata()).to(args.device)
    with torch.no_grad():  # draws the parameters whose size depends on the input
        model(data.x_dict, data.edge_index_dict)
    return model


def loss_of(model, data):
    out, mask = model(data.x_dict, data.edge_index_dict)["paper"], data["paper"].train_mask
    return F.cross_entropy(out[mask], data["paper"].y[mask])


@torch.no_grad()
def test(model, data):
    model.eval()
    paper = data["paper"]
    correct = model(data.x_dict, data.edge_index_dict)["paper"].argmax(dim=-1) == paper.y
    return [100 * float(correct[mask].float().mean()) for mask in (paper.train_mask, paper.val_mask, paper.test_mask)]


def fit(args, model, data):
    """Train; returns the test accuracy of the epoch that was best on the validation papers."""
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
