"""Why a network of attention layers gave a node its class: torch_geometric.explain, with a picture.

    python explain.py
    python explain.py --algorithm attention --node 5
    python explain.py --dataset fake --epochs 5         # random data, nothing to download

To run it with PyG's layers, change the one import; nothing else differs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch_geometric.datasets import FakeDataset
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.explain.metric import unfaithfulness
from torch_geometric.transforms import Compose, NormalizeFeatures, RandomNodeSplit

from graphattn.conv import TransformerConv  # was: from torch_geometric.nn import TransformerConv
from graphattn_datasets import load_dataset


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="cora", help="cora, citeseer, pubmed or fake")
    parser.add_argument("--algorithm", default="gnnexplainer", choices=["attention", "gnnexplainer"])
    parser.add_argument("--explainer_epochs", type=int, default=100, help="of gnnexplainer")
    parser.add_argument("--node", type=int, default=10, help="the node whose class is explained")
    parser.add_argument("--edges", type=int, default=20, help="how many edges the picture shows")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--picture", default="explanation.png")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


class Net(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = TransformerConv(in_channels, 8, heads=8)
        self.conv2 = TransformerConv(64, out_channels, heads=1)

    def forward(self, x, edge_index):
        x = F.dropout(x, p=0.6, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, p=0.6, training=self.training)
        return self.conv2(x, edge_index)


def load(args):
    if args.dataset == "fake":
        split = Compose([NormalizeFeatures(), RandomNodeSplit(num_val=0.2, num_test=0.2)])
        return FakeDataset(1, avg_num_nodes=200, num_channels=32, num_classes=4, transform=split)[0]
    return load_dataset(args.dataset, transform=NormalizeFeatures())[0]


def train(args, model, data):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)
    for _ in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(args.seed)
    data = load(args)
    model = Net(data.num_features, int(data.y.max()) + 1)
    train(args, model, data)

    attention = args.algorithm == "attention"
    explainer = Explainer(
        model,
        algorithm=AttentionExplainer() if attention else GNNExplainer(epochs=args.explainer_epochs),
        explanation_type="model",
        node_mask_type=None if attention else "attributes",
        edge_mask_type="object",
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
        threshold_config={"threshold_type": "topk", "value": args.edges},
    )
    explanation = explainer(data.x, data.edge_index, index=args.node)
    for edge in explanation.edge_mask.topk(5).indices.tolist():
        source, target = data.edge_index[:, edge].tolist()
        print(f"node {target} reads node {source}: {explanation.edge_mask[edge]:.4f}")
    print(f"unfaithfulness: {unfaithfulness(explainer, explanation):.4f}")
    explanation.visualize_graph(args.picture, backend="networkx")
    print(f"the {args.edges} most important edges are drawn in {args.picture}")


if __name__ == "__main__":
    main()
