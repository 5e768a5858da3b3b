"""Nodes of a citation graph with DGL: two layers of graph attention (after DGL's examples/pytorch/gat).

    python dgl_gat.py
    python dgl_gat.py --dataset fake --epochs 5         # random data, nothing to download

Needs DGL (`pip install "graphattn[dgl]"`). To run it with DGL's layers, change the one import; nothing else differs.
"""

import argparse
import os

import torch
import torch.nn.functional as F
from torch_geometric.datasets import FakeDataset
from torch_geometric.transforms import Compose, NormalizeFeatures, RandomNodeSplit

from graphattn.bridge.dgl import GATConv  # was: from dgl.nn.pytorch import GATConv
from graphattn_datasets import load_dataset

os.environ.setdefault("DGLBACKEND", "pytorch")  # otherwise DGL writes a file into the home folder

import dgl


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="cora", help="cora, citeseer, pubmed or fake")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


class Net(torch.nn.Module):
    def __init__(self, in_feats, out_feats, heads):
        super().__init__()
        self.conv1 = GATConv(in_feats, 8, heads, feat_drop=0.6, attn_drop=0.6, activation=F.elu)
        self.conv2 = GATConv(8 * heads, out_feats, 1, feat_drop=0.6, attn_drop=0.6)

    def forward(self, graph, feat):
        return self.conv2(graph, self.conv1(graph, feat).flatten(1)).mean(1)


def load(args):
    """A DGLGraph with features, labels and masks."""
    if args.dataset == "fake":
        transform = Compose([NormalizeFeatures(), RandomNodeSplit(num_val=0.2, num_test=0.2)])
        data = FakeDataset(1, avg_num_nodes=200, num_channels=32, num_classes=4, transform=transform)[0]
    else:
        data = load_dataset(args.dataset, transform=NormalizeFeatures())[0]
    graph = dgl.graph(tuple(data.edge_index), num_nodes=data.num_nodes)
    for name in ("x", "y", "train_mask", "val_mask", "test_mask"):
        graph.ndata[name] = data[name]
    return dgl.add_self_loop(dgl.remove_self_loop(graph))


@torch.no_grad()
def test(model, graph):
    model.eval()
    correct = model(graph, graph.ndata["x"]).argmax(dim=-1) == graph.ndata["y"]
    return [100 * float(correct[graph.ndata[f"{part}_mask"]].float().mean()) for part in ("train", "val", "test")]


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(args.seed)
    graph = load(args)
    labels, mask = graph.ndata["y"], graph.ndata["train_mask"]
    model = Net(graph.ndata["x"].shape[1], int(labels.max()) + 1, args.heads)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)
    best_val = best_test = 0.0
    for epoch in range(1, args.epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(graph, graph.ndata["x"])[mask], labels[mask])
        loss.backward()
        optimizer.step()
        train, val, tested = test(model, graph)
        if val > best_val:
            best_val, best_test = val, tested
        print(f"Epoch: {epoch:03d}, Loss: {loss:.4f}, Train: {train:.2f}, Val: {val:.2f}, Test: {tested:.2f}")
    print(f"Test accuracy at the best validation accuracy: {best_test:.2f} %")


if __name__ == "__main__":
    main()
