"""The table of four: {with, without edges} x {with, without Laplacian encoding}, each over several seeds.

    python -m experiments.ablation --config experiments/pattern/small.yaml --seeds 3
    python -m experiments.ablation --config experiments/cluster/small.yaml --seeds 3 -- --trainer.max_epochs=5

"Without edges" is the full graph of Dwivedi & Bresson (arXiv 2012.09699): every node reads every other node of its
graph, so the structure is gone from the attention; the encoding is still that of the real graph. What follows "--" goes
to each run. Runs are ordinary runs in runs/<name>-ablation/; a second call goes on where the first one stopped. The
table and the picture are written beside them.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.paired import mean_and_deviation
from graphattn.errors import ConfigError, GraphattnError
from graphattn.training.results import Results

VARIANTS = tuple((edges, encoding) for edges in ("edges", "full graph") for encoding in ("LapPE", "no LapPE"))

Table = dict[tuple[str, str], list[Results]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=Path, help="a configuration with LapPE, of generated SBM graphs"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: 0, 1, ... (default 3)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all runs (default runs)")
    parser.add_argument("overrides", nargs="*", help="after --: further arguments of graphattn fit")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    fixed = [word for word in options.overrides if word.startswith("--run.")]
    if fixed:
        parser.error(
            f"{fixed[0].split('=')[0]} is set for each variant; name the runs in the configuration, or take --root"
        )
    if not options.config.is_file():
        parser.error(f"there is no file {options.config}")
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    name = f"{config.get('run', {}).get('name') or options.config.stem}-ablation"
    try:
        table = run_all(config, name, options.root, options.seeds, options.overrides)
    except GraphattnError as error:
        print(f"ablation: error: {error}", file=sys.stderr)
        return 2
    classes = config["model"]["init_args"].get("num_classes")
    folder = options.root / name
    text = markdown(table, name)
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    rows = {" + ".join(key): [json.loads(result.to_json()) for result in found] for key, found in table.items()}
    (folder / "ablation.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    picture(table, folder / "ablation.png", chance=100 / classes if classes else None)
    print(f"\n{text}\n{folder / 'ablation.md'}, {folder / 'ablation.png'}")
    return 0


def variant_of(config: dict[str, Any], edges: str, encoding: str) -> dict[str, Any]:
    """The configuration with edges or encoding taken away."""
    config = copy.deepcopy(config)
    task, data = config["model"]["init_args"], config["data"]["init_args"]
    if edges == "full graph":
        data["transform"] = {"class_path": "graphattn.training.CompleteGraph"}
    if encoding == "no LapPE":
        task["model"]["init_args"]["pe_dim"] = task["train_transform"] = data["pre_transform"] = None
    return config


def run_all(config: dict[str, Any], name: str, root: Path, seeds: int, overrides: Sequence[str]) -> Table:
    """The results of all variants and seeds; finished runs are read, not repeated."""
    from graphattn.training import run

    table: Table = {key: [] for key in VARIANTS}
    for seed in range(seeds):
        for key in VARIANTS:
            variant = "-".join(key).replace(" ", "_")
            print(f"== {variant}, seed {seed}", flush=True)
            path = root / name / f"{variant}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(variant_of(config, *key), sort_keys=False), encoding="utf-8")
            place = [f"--run.name={name}/{variant}", f"--run.root={root}", "--run.if_exists=resume"]
            found = run("fit", ["--config", str(path), f"--seed_everything={seed}", *place, *overrides])
            if not isinstance(found, Results):
                raise ConfigError("the run gave no results; leave out trainer.fast_dev_run")
            table[key].append(found)
    return table


def markdown(table: Table, name: str) -> str:
    """The table as text: mean ± unbiased standard deviation over seeds."""
    first = next(iter(table.values()))[0]
    lines = [
        f"# {name}: test {first.metric}, {len(next(iter(table.values())))} seeds",
        "",
        "| attention | encoding | last epoch | best validation | training, last epoch |",
        "|---|---|---:|---:|---:|",
    ]
    for (edges, encoding), results in table.items():
        cells = []
        for take in (
            lambda r: r.last.test[r.metric],
            lambda r: r.best.test[r.metric],
            lambda r: r.last.train[r.metric],
        ):
            cells.append("{:.2f} ± {:.2f}".format(*mean_and_deviation([take(result) for result in results])))
        lines.append(f"| {edges} | {encoding} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(table: Table, path: Path, chance: float | None) -> None:
    """Bars of the test metric at the last epoch, with standard deviations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    groups = list(dict.fromkeys(edges for edges, _ in table))
    encodings = list(dict.fromkeys(encoding for _, encoding in table))
    width = 0.8 / len(encodings)
    for number, encoding in enumerate(encodings):
        cells = [table[group, encoding] for group in groups]
        stats = [mean_and_deviation([r.last.test[r.metric] for r in results]) for results in cells]
        places = [index + (number - (len(encodings) - 1) / 2) * width for index in range(len(groups))]
        bars = axes.bar(places, [m for m, _ in stats], width, yerr=[d for _, d in stats], capsize=4, label=encoding)
        axes.bar_label(bars, fmt="%.1f", padding=3)
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 100)
    seeds = len(next(iter(table.values())))
    axes.set_ylabel(f"test {cells[0][0].metric.replace('_', ' ')} (%)")
    axes.set_title(f"last epoch, mean ± standard deviation of {seeds} seeds", fontsize="medium")
    axes.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
