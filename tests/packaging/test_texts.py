"""What the texts show runs, and what they point at is there."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"build", "runs", "node_modules"}


@cache
def texts() -> list[Path]:
    """Our Markdown files."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    for room in ("kernels", "datasets", "experiments"):
        found += sorted((ROOT / room).rglob("*.md"))
    return [path for path in found if not SKIPPED & set(path.relative_to(ROOT).parts)]


def blocks(path: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", texts(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^(```.*?^```|    .*?$)", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose)):
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_commands_name_what_there_is() -> None:
    """Configurations, modules, subcommands, and runs that a configuration of ours makes."""
    from graphattn import cli

    configurations = list((ROOT / "experiments").rglob("*.yaml"))
    runs = {
        name for path in configurations for name in re.findall(r"^  name: ([\w-]+)", path.read_text(), re.MULTILINE)
    }
    known = {*cli._TRAINING, "list", "env"}
    sources = [*texts(), Path(cli.__file__), *(ROOT / "experiments").rglob("*.py"), *configurations]
    for path in sources:
        text, where = path.read_text(), path.relative_to(ROOT)
        for name in re.findall(r"--config (experiments/[\w/-]+\.yaml)", text):
            assert (ROOT / name).is_file(), f"{where}: {name}"
        for name in re.findall(r"python -m (experiments(?:\.\w+)+)", text):
            file = ROOT / name.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), f"{where}: {name}"
        for name in re.findall(r"^    graphattn (\w+) ", text, flags=re.MULTILINE):
            assert name in known, f"{where}: graphattn {name}"
        for name in re.findall(r"--config runs/([\w-]+)/seed_", text):
            assert name in runs, f"{where}: runs/{name}"


def test_help_of_the_examples_names_examples() -> None:
    pytest.importorskip("torch_geometric")
    from experiments.examples import compare
    from experiments.examples.paired.cases import CASES

    known = [case.name for case in CASES]
    assert compare.__doc__ is not None
    commands = re.findall(r"python -m experiments\.examples\.compare(.*?)(?:  +#.*)?$", compare.__doc__, re.MULTILINE)
    assert len(commands) > 3
    for command in commands:
        assert set(compare._parser().parse_args(command.split()).names) <= set(known), command


@pytest.mark.requires("pyg")
def test_readme_runs() -> None:
    names: dict[str, object] = {}
    for block in blocks(ROOT / "README.md"):
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.requires("pyg")
def test_examples_of_the_data_sets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = blocks(ROOT / "datasets/graphattn_datasets/README.md")
    data = Path(os.environ.get("GRAPHATTN_DATA") or "nowhere")
    if all((data / name).is_dir() for name in ("planetoid", "zinc", "tu_graphs")):
        monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path))
        others = [first.replace("(500, 100, 100)", "(6, 2, 2)"), *others]
    for block in others:
        exec(compile(block, "datasets/graphattn_datasets/README.md", "exec"), {})


@pytest.mark.requires("pyg")
def test_your_own_graphs_train(tmp_path: Path) -> None:
    for package in ("lightning", "jsonargparse", "torchmetrics"):
        pytest.importorskip(package)
    readme = ROOT / "experiments/README.md"
    (tmp_path / "my_graphs.py").write_text(blocks(readme)[0])
    (tmp_path / "my_graphs.yaml").write_text(blocks(readme, "yaml")[0])
    path = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", ROOT / "datasets"]))
    command = [sys.executable, "-m", "graphattn.cli", "fit", "--config", "my_graphs.yaml", "--trainer.max_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs/my-graphs/seed_0/results.json").read_text())
    assert results["last"] == results["best"]  # one epoch, tested twice on the same graphs


def with_examples() -> list[str]:
    modules = []
    for room, package in ((ROOT, "graphattn"), (ROOT / "datasets", "graphattn_datasets")):
        for path in sorted((room / package).rglob("*.py")):
            if ">>> " in path.read_text():
                modules.append(".".join(path.relative_to(room).with_suffix("").parts))
    return modules


@pytest.mark.requires("pyg")
@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert not found.failed


def test_score_of_the_contributing_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from graphattn import attend, patterns
    from graphattn.score import SCORES

    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a score")[2].partition("## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if not line or line.startswith("    "))
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    monkeypatch.setattr("graphattn.score.base._MADE", {})
    exec(
        compile(code, "CONTRIBUTING.md", "exec"),
        {"__name__": "negative_distance"},
    )
    q, k, v = torch.randn(3, 4, 2, 8)
    out = attend(patterns.complete(4), q, k, v, score="negative_distance")
    weights = -torch.cdist(q.transpose(0, 1), k.transpose(0, 1)).square()
    torch.testing.assert_close(out, (weights.softmax(-1) @ v.transpose(0, 1)).transpose(0, 1))
