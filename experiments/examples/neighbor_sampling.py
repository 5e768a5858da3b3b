"""A graph in pieces: training on sampled neighbourhoods, inference layer by layer (after PyG's examples/reddit.py).

    python neighbor_sampling.py
    python neighbor_sampling.py --dataset fake --epochs 2   # random data, nothing to download

To run it with PyG's layers, change the one import; nothing else differs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.nn import Linear, ModuleList
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import NeighborLoader
from torch_geometric.transforms import RandomNodeSplit
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from torchmetrics.functional.classification import binary_auroc

from graphattn.conv import TransformerConv  # was: from torch_geometric.nn import TransformerConv
from graphattn_datasets import load_dataset


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="minesweeper", help="one graph of two classes: minesweeper, ... or fake")
    parser.add_argument("--num_neighbors", type=int, default=6, help="of each node, in each hop")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class Net(torch.nn.Module):
    def __init__(self, in_channels, channels, heads, layers):
        super().__init__()
        self.first, self.last = Linear(in_channels, channels), Linear(channels, 1)
        self.convs = ModuleList([TransformerConv(channels, channels // heads, heads) for _ in range(layers)])

    def forward(self, x, edge_index):
        x = self.first(x)
        for conv in self.convs:
            x = x + F.gelu(conv(x, edge_index))
        return self.last(x).squeeze(-1)

    @torch.no_grad()
    def inference(self, data, loader, device):
        """All nodes, one layer at a time: no node is computed twice, and no layer needs the whole graph at once."""
        x = self.first(data.x.to(device)).cpu()
        for conv in self.convs:
            rows = []
            for batch in loader:
                part = x[batch.n_id].to(device)
                out = part + F.gelu(conv(part, batch.edge_index.to(device)))
                rows.append(out[: batch.batch_size].cpu())
            x = torch.cat(rows)
        return self.last(x.to(device)).squeeze(-1).cpu()


def neighbor_loader(data, num_neighbors, **kwargs):
    """PyG's loader; where pyg-lib and torch-sparse are missing, with a sampler that needs neither."""
    sampler = None
    if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        from graphattn.training.data.neighbors import InEdges, NeighborhoodSampler

        sampler = NeighborhoodSampler(InEdges(data.edge_index, data.num_nodes), num_neighbors)
    return NeighborLoader(data, num_neighbors, neighbor_sampler=sampler, **kwargs)


def load(args):
    """A loader of sampled neighbourhoods of training nodes, one of all in-edges of all nodes, and the graph."""
    if args.dataset == "fake":
        split = RandomNodeSplit(num_val=0.2, num_test=0.2)
        data = FakeDataset(1, avg_num_nodes=300, num_channels=16, num_classes=2, transform=split)[0]
    else:
        data = load_dataset(args.dataset)[0]
    fan = [args.num_neighbors] * args.layers
    train = neighbor_loader(data, fan, input_nodes=data.train_mask, batch_size=args.batch_size, shuffle=True)
    return train, neighbor_loader(data, [-1], batch_size=4096), data


def build(args, loaded):
    return Net(loaded[2].num_features, args.channels, args.heads, args.layers).to(args.device)


def loss_of(model, batch):
    out = model(batch.x, batch.edge_index)[: batch.batch_size]  # the seeds come first
    return F.binary_cross_entropy_with_logits(out, batch.y[: batch.batch_size].float())


def test(model, data, loader, device):
    model.eval()
    out = model.inference(data, loader, device)
    masks = (data.train_mask, data.val_mask, data.test_mask)
    return [100 * float(binary_auroc(out[mask], data.y[mask])) for mask in masks]


def fit(args, model, loaded):
    """Train; returns the test ROC-AUC of the epoch that was best on the validation nodes."""
    train_loader, all_loader, data = loaded
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    best_val = best_test = 0.0
    for epoch in range(1, args.epochs + 1):
        model.train()
        for batch in train_loader:
            batch = batch.to(args.device)
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
        train, val, tested = test(model, data, all_loader, args.device)
        if val > best_val:
            best_val, best_test = val, tested
        print(f"Epoch: {epoch:03d}, Loss: {loss:.4f}, Train: {train:.2f}, Val: {val:.2f}, Test: {tested:.2f}")
    return best_test


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(args.seed)
    loaded = load(args)
    model = build(args, loaded)
    print(f"Test ROC-AUC at the best validation ROC-AUC: {fit(args, model, loaded):.2f} %")


if __name__ == "__main__":
    main()
