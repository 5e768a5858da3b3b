"""Graphs described in words: text-attributed graphs, sampled trees, and the prompts that serialise them."""

from graphattn_datasets.text_graphs.graphs import (
    TEXT_GRAPHS,
    TextGraph,
    bag_of_words,
    load_text_graph,
    split_links,
    split_nodes,
)
from graphattn_datasets.text_graphs.prompt_set import PromptSet
from graphattn_datasets.text_graphs.prompts import TEMPLATES, PromptWriter, Template
from graphattn_datasets.text_graphs.tokens import NODE, Tokens, align_nodes, hugging_face_tokens, word_tokens
from graphattn_datasets.text_graphs.trees import EgoTrees, join_trees, sample_trees, trees_of_neighbors

__all__ = [
    "NODE",
    "TEMPLATES",
    "TEXT_GRAPHS",
    "EgoTrees",
    "PromptSet",
    "PromptWriter",
    "Template",
    "TextGraph",
    "Tokens",
    "align_nodes",
    "bag_of_words",
    "hugging_face_tokens",
    "join_trees",
    "load_text_graph",
    "sample_trees",
    "split_links",
    "split_nodes",
    "trees_of_neighbors",
    "word_tokens",
]
