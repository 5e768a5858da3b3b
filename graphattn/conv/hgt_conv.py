"""PyG's HGTConv as one attention over all node and edge types."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.conv._inputs import check_device, check_features
from graphattn.conv._messages import MessageAttention
from graphattn.conv._pyg import HeteroDictLinear, HeteroLinear, ParameterDict, ones
from graphattn.conv._stacked import Relation, stacked_graph, stacked_places
from graphattn.errors import ArgumentError

__all__ = ["HGTConv"]


class HGTConv(MessageAttention):
    r"""The Heterogeneous Graph Transformer (HGT) operator from the
    `"Heterogeneous Graph Transformer" <https://arxiv.org/abs/2003.01332>`_
    paper.

    For a target :math:`t` of type :math:`\tau(t)`, and each edge from a source :math:`s` by a relation :math:`r`,

    .. math::
        a_{s,r,t} = \frac{\mu_r}{\sqrt{d}}
        \left( \mathbf{W}^{Q}_{\tau(t)} \mathbf{x}_t \right)^{\top}
        \mathbf{W}^{ATT}_{r} \mathbf{W}^{K}_{\tau(s)} \mathbf{x}_s, \qquad
        \mathbf{m}_t = \sum_{s,r} \alpha_{s,r,t}
        \mathbf{W}^{MSG}_{r} \mathbf{W}^{V}_{\tau(s)} \mathbf{x}_s, \qquad
        \mathbf{x}^{\prime}_t = \beta_{\tau(t)} \mathbf{W}^{A}_{\tau(t)}
        \textrm{gelu}(\mathbf{m}_t) + (1 - \beta_{\tau(t)}) \mathbf{x}_t

    for each head, where the last term is there if the widths are equal. What :math:`\alpha` sums to 1 over is a choice
    that published models make differently:

    * :obj:`softmax_over="target"`: over all edges to :math:`t`, whatever their relation (HGT, eq. 3; PyG). Relations
      compete: a relation with many or well-matching neighbours leaves little to the others.
    * :obj:`softmax_over="relation"`: over the edges to :math:`t` by each relation apart, and :math:`\mathbf{m}_t` is
      the sum over relations (within-relation attention of `"Relational Graph Attention Networks"
      <https://arxiv.org/abs/1904.05811>`_). Every relation by which :math:`t` reads somebody has a say; the weights of
      :math:`t` add up to the number of these relations.

    All relations are one :class:`~graphattn.TokenGraph` and one attention over it.

    Arguments, parameters and state dict are those of :class:`torch_geometric.nn.conv.HGTConv`, and so is the output
    with :obj:`softmax_over="target"`, up to rounding: the softmax is exact, where PyG adds :math:`10^{-16}` to its
    denominator. A node without in-edges gets exactly zero from attention in both.

    Args:
        in_channels (int or Dict[str, int]): Size of each input sample of every
            node type, or :obj:`-1` to derive the size from the first input(s)
            to the forward method.
        out_channels (int): Size of each output sample, all heads together.
        metadata (Tuple[List[str], List[Tuple[str, str, str]]]): The metadata
            of the heterogeneous graph, *i.e.* its node and edge types given
            by a list of strings and a list of string triplets, respectively.
            See :meth:`torch_geometric.data.HeteroData.metadata` for more
            information.
        heads (int, optional): Number of multi-head-attentions.
            (default: :obj:`1`)
        softmax_over (str, optional): What the weights are normalized over,
            :obj:`"target"` or :obj:`"relation"`, see above.
            (default: :obj:`"target"`)
        backend (str, optional): See :func:`graphattn.attend`. (default: :obj:`"auto"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`; :obj:`aggr` must be :obj:`"add"`.
    """

    def __init__(
        self,
        in_channels: int | dict[str, int],
        out_channels: int,
        metadata: tuple[list[str], list[Relation]],
        heads: int = 1,
        *,
        softmax_over: Literal["target", "relation"] = "target",
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        if heads < 1 or out_channels < 1 or out_channels % heads:
            raise ArgumentError(
                f"out_channels must be a positive multiple of heads, got out_channels={out_channels}, heads={heads}"
            )
        if softmax_over not in ("target", "relation"):
            raise ArgumentError(f"softmax_over must be 'target' or 'relation', got {softmax_over!r}")
        if kwargs.get("flow", "source_to_target") != "source_to_target":
            raise ArgumentError("flow must be 'source_to_target': a relation says which of its types is the target")
        super().__init__(backend=backend, **kwargs)
        if not isinstance(in_channels, dict):
            in_channels = dict.fromkeys(metadata[0], in_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.softmax_over = softmax_over
        self.node_types = metadata[0]
        self.edge_types = [tuple(relation) for relation in metadata[1]]
        self.edge_types_map = {relation: number for number, relation in enumerate(self.edge_types)}
        self.dst_node_types = {relation[-1] for relation in self.edge_types}

        self.kqv_lin = HeteroDictLinear(in_channels, out_channels * 3)
        self.out_lin = HeteroDictLinear(out_channels, out_channels, types=self.node_types)
        channels, num_types = out_channels // heads, heads * len(self.edge_types)
        self.k_rel = HeteroLinear(channels, channels, num_types, bias=False, is_sorted=True)
        self.v_rel = HeteroLinear(channels, channels, num_types, bias=False, is_sorted=True)
        self.skip = ParameterDict({kind: nn.Parameter(torch.empty(1)) for kind in self.node_types})
        self.p_rel = ParameterDict()
        for relation in self.edge_types:
            self.p_rel["__".join(relation)] = nn.Parameter(torch.empty(1, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        for child in (self.kqv_lin, self.out_lin, self.k_rel, self.v_rel):
            child.reset_parameters()
        ones(self.skip)
        ones(self.p_rel)

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Relation, Any]) -> dict[str, Tensor]:
        """Attention of every node over the sources of its in-edges by all relations.

        Args:
            x_dict: ``[N, F]`` features of the nodes of each type.
            edge_index_dict: The edges of each relation, in any form that other layers take: int64 ``[2, E]``, a
                *transposed* sparse adjacency, a :class:`~graphattn.TokenGraph`, ... The same tensors or graphs are
                sorted once for all layers and steps (see :meth:`AttentionConv.forward`).

        Returns:
            ``[N, out_channels]`` for each node type that is the target of some relation.

        Raises:
            ArgumentError: If shapes, values or types of nodes and edges do not fit.
            ArgumentTypeError: If types or dtypes do not fit.
        """
        x_dict, sizes = self._check(x_dict, edge_index_dict)
        asked = {kind: size for kind, size in sizes.items() if kind in self.dst_node_types}
        if not edge_index_dict:
            nothing = {kind: x_dict[kind].new_zeros(size, self.out_channels) for kind, size in asked.items()}
            return self._combine(nothing, x_dict)
        apart = self.softmax_over == "relation"  # then a target is a token for each of its relations
        sources, by_source, num_sources = stacked_places(edge_index_dict, sizes, 0, each=True)
        targets, by_target, num_targets = stacked_places(edge_index_dict, asked, 2, each=apart)
        graph = stacked_graph(edge_index_dict, sizes, (sources, num_sources), (targets, num_targets))
        check_device("edge_index_dict", graph, "x_dict", next(iter(x_dict.values())))
        times = {kind: len(by_target[kind]) if apart else 1 for kind in asked}

        queries: list[Tensor] = []
        rows: dict[str, tuple[Tensor, Tensor]] = {}
        for kind, projected in self.kqv_lin(x_dict).items():
            k, q, v = projected.unflatten(-1, (3, self.heads, -1)).unbind(1)
            rows[kind] = k, v
            if kind in asked:
                queries.append(q.repeat_interleave(times[kind], dim=0) if apart else q)
        q, (k, v) = _join(queries), self._project(rows, by_source)
        out, _ = self._send(graph, q, k, v, {}, None) if self._observed else self._fuse(graph, q, k, v, {}, False)

        parts = out.flatten(1).split([size * times[kind] for kind, size in asked.items()])
        heads = dict(zip(asked, parts, strict=True))
        if apart:
            heads = {kind: part.unflatten(0, (asked[kind], times[kind])).sum(1) for kind, part in heads.items()}
        return self._combine(heads, x_dict)

    def _check(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[Relation, Any]
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Features and numbers of the nodes, in the order of the projections."""
        lins = self.kqv_lin.lins
        x_dict = {kind: x_dict[kind] for kind in lins if kind in x_dict}
        for kind, x in x_dict.items():
            check_features(f"x_dict[{kind!r}]", x, lins[kind].in_channels)
        for relation in edge_index_dict:
            if relation not in self.edge_types_map:
                raise ArgumentError(f"edge_index_dict must have edge types of the metadata, got {relation}")
            for kind in (relation[0], relation[-1]):
                if kind not in x_dict:
                    raise ArgumentError(f"x_dict must have features of {kind!r}, an end of {relation}")
        return x_dict, {kind: x.shape[0] for kind, x in x_dict.items()}

    def _project(
        self, rows: dict[str, tuple[Tensor, Tensor]], by_source: dict[str, list[Relation]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, ``[tokens, H, D]``: for each type, all its relations in one product."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        by_head = (self.heads, len(self.edge_types))
        k_rel, v_rel = (lin.weight.unflatten(0, by_head).unbind(1) for lin in (self.k_rel, self.v_rel))
        for kind, relations in by_source.items():
            if not relations:
                continue
            numbers = [self.edge_types_map[relation] for relation in relations]
            # The prior of a relation is a factor on its keys.
            priors = [self.p_rel["__".join(relation)].view(-1, 1, 1) for relation in relations]
            to_key = torch.cat([k_rel[number] * prior for number, prior in zip(numbers, priors, strict=True)], dim=-1)
            to_value = torch.cat([v_rel[number] for number in numbers], dim=-1)
            for all_of_them, own, weight in zip((keys, values), rows[kind], (to_key, to_value), strict=True):
                product = torch.bmm(own.transpose(0, 1), weight)  # [H, nodes, relations * D]
                product = product.unflatten(-1, (len(relations), -1)).permute(1, 2, 0, 3)
                all_of_them.append(product.flatten(0, 1))
        return _join(keys), _join(values)

    def _combine(self, heads: dict[str, Tensor], x_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The output of each type, from what attention gave and the nodes' own features."""
        out = self.out_lin({kind: F.gelu(rows) for kind, rows in heads.items()})
        for kind, rows in out.items():
            if rows.shape[-1] == x_dict[kind].shape[-1]:
                share = self.skip[kind].sigmoid()
                out[kind] = share * rows + (1 - share) * x_dict[kind]
        return {kind: out[kind] for kind in heads}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(-1, {self.out_channels}, heads={self.heads})"


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
