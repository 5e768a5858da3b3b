"""The names, what is known about them, and the one entry point."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import graphattn_datasets
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn_datasets import dataset_info, list_datasets

NAMES = list_datasets()


def test_lists_the_sets_by_task():
    assert {"pattern", "cluster"} == set(list_datasets("inductive_node"))
    assert {"zinc_12k", "zinc_full", "ogbg_molesol", "pcqm4mv2"} <= set(list_datasets("graph_regression"))
    assert {"cora", "minesweeper", "squirrel_filtered"} <= set(list_datasets("node"))
    assert {"digits", "mnist", "cifar10"} == set(list_datasets("image_classification"))
    assert sum(len(list_datasets(task)) for task in {dataset_info(name).task for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_complete(name):
    info = dataset_info(name)
    readme = (Path(graphattn_datasets.__file__).parent / "README.md").read_text()
    assert f"`{name}`" in readme
    assert info.licence and info.source and info.exactness and info.size
    assert (info.num_classes is None) != (info.num_targets is None) or info.task == "link"
    assert (info.metric in ("mae", "rmse")) == (info.task == "graph_regression")
    assert info.metric in ("average_precision", "roc_auc") if info.multilabel else info.metric != "average_precision"
    assert info.splits == {"node": "masks", "inductive_node": "files"}.get(info.task, info.splits)
    assert not (info.node_vocab and info.node_channels)
    assert all(anchor.source and anchor.value > 0 for anchor in info.anchors)
    assert bool(info.data_path) == (name not in ("pattern", "cluster", "digits", "generated_scenes", "python_docs"))


def test_names_are_forgiving_and_unknown_ones_are_answered_with_near_ones():
    assert dataset_info("Squirrel-Filtered").name == "squirrel_filtered"
    assert dataset_info("ZINC").name == "zinc_12k"
    with pytest.raises(ArgumentError, match="unknown data set 'minesweper'; did you mean 'minesweeper'"):
        dataset_info("minesweper")


def test_exports_exist():
    pytest.importorskip("torch_geometric")
    for name in graphattn_datasets.__all__:
        assert getattr(graphattn_datasets, name) is not None
    with pytest.raises(AttributeError):
        _ = graphattn_datasets.nothing


@pytest.mark.parametrize("name", NAMES)
def test_every_loader_exists(name):
    pytest.importorskip("torch_geometric")
    module, _, function = dataset_info(name).loader.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_unknown_options_and_splits_are_named():
    pytest.importorskip("torch_geometric")
    with pytest.raises(ArgumentTypeError, match="no option 'sede'; it has .*seed, num_graphs"):
        graphattn_datasets.load_dataset("pattern", sede=1)
    with pytest.raises(ArgumentTypeError, match="no option 'fold'"):
        graphattn_datasets.load_dataset("pattern", fold=1)
    with pytest.raises(ArgumentError, match="split must be one of train, val, test or None, got 'valid'"):
        graphattn_datasets.load_dataset("pattern", split="valid")


def test_a_loaded_set_knows_its_facts():
    pytest.importorskip("torch_geometric")
    splits = graphattn_datasets.load_dataset("cluster", num_graphs=(2, 1, 1))
    assert splits._fields == ("train", "val", "test")
    one = graphattn_datasets.load_dataset("cluster", num_graphs=(2, 1, 1), split="test")
    assert one.info is dataset_info("cluster") and len(one) == 1


def test_without_pyg_names_work_and_loading_says_what_to_install():
    code = """
        import sys
        sys.modules["torch_geometric"] = None
        import graphattn_datasets as data
        from graphattn.errors import MissingPackageError
        assert "cora" in data.list_datasets() and data.dataset_info("cora").num_classes == 7
        for use in (lambda: data.load_dataset("cora"), lambda: data.SBMPattern, lambda: data.sbm_cluster_graphs(1)):
            try:
                use()
            except MissingPackageError as error:
                assert "graphattn[pyg]" in str(error), error
            else:
                raise AssertionError("no error")
    """
    root = Path(graphattn_datasets.__file__).parents[2]
    paths = [str(root), str(root / "kernels"), str(root / "datasets")]
    program = f"import sys\nsys.path[:0] = {paths!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_neither_torch_nor_pyg():
    root = Path(graphattn_datasets.__file__).parents[1]
    program = f"import sys\nsys.path.insert(0, {str(root)!r})\nimport graphattn_datasets\n"
    program += "assert not {'torch', 'torch_geometric'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
