"""One configuration with several attentions, at the same budget, each over several seeds.

    python -m experiments.infsa.compare --config experiments/infsa/digits.yaml --seeds 3
    python -m experiments.infsa.compare --config experiments/infsa/cora.yaml --seeds 3 -- --trainer.max_epochs=50

What follows "--" goes to each run. Runs are ordinary runs in runs/<name>-compare/; a second call goes on where the
first one stopped. Written beside them: compare.md, compare.json, compare.png; for images also what the trained networks
read (cosines to the Perron vectors of each layer, deletion.png, relevance.png).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.infsa.variants import variants_of, with_variant
from graphattn.errors import ConfigError, GraphattnError
from graphattn.training.results import Results

__all__ = ["Table", "main", "markdown", "run_all"]

Table = dict[str, list[Results]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a configuration of this folder")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: 0, 1, ... (default 3)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all runs (default runs)")
    parser.add_argument("overrides", nargs="*", help="after --: further arguments of graphattn fit")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if not options.config.is_file():
        parser.error(f"there is no file {options.config}")
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    name = f"{config.get('run', {}).get('name') or options.config.stem}-compare"
    folder = options.root / name
    try:
        table = run_all(config, name, options.root, options.seeds, options.overrides)
        text = markdown(table, name)
        if config["data"]["class_path"].endswith("ImageDataModule"):
            from experiments.infsa.look import look

            print("== looking at what the trained networks read", flush=True)
            text += "\n" + look(table, folder)
    except GraphattnError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    (folder / "compare.md").write_text(text, encoding="utf-8")
    rows = {key: [json.loads(result.to_json()) for result in found] for key, found in table.items()}
    (folder / "compare.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    picture(table, folder / "compare.png")
    print(f"\n{text}\n{folder / 'compare.md'}, .json, .png")
    return 0


def run_all(config: dict[str, Any], name: str, root: Path, seeds: int, overrides: Sequence[str]) -> Table:
    """The results of all variants and seeds; finished runs are read, not repeated."""
    from graphattn.training import run

    variants = variants_of(config)
    table: Table = {key: [] for key in variants}
    total = seeds * len(variants)
    for number in range(total):
        seed, key = number // len(variants), list(variants)[number % len(variants)]
        print(f"== {key}, seed {seed} ({number + 1} of {total})", flush=True)
        path = root / name / f"{key}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(with_variant(config, variants[key]), sort_keys=False), encoding="utf-8")
        place = [f"--run.name={name}/{key}", f"--run.root={root}", "--run.if_exists=resume"]
        found = run("fit", ["--config", str(path), f"--seed_everything={seed}", *place, *overrides])
        if not isinstance(found, Results):
            raise ConfigError("the run gave no results; leave out trainer.fast_dev_run")
        table[key].append(found)
    return table


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(table: Table, name: str) -> str:
    """The table as text: mean ± unbiased standard deviation over seeds, and differences to the first row by seed."""
    first = next(iter(table.values()))
    lines = [
        f"# {name}: test {first[0].metric}, {len(first)} seeds, {first[0].epochs} epochs, on {first[0].device}",
        "",
        "| attention | parameters | last epoch | best validation | less the first row, by seed | training, last epoch "
        "| seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, results in table.items():
        metric = results[0].metric
        last = [r.last.test[metric] for r in results]
        gaps = [mine - r.last.test[metric] for mine, r in zip(last, first, strict=True)]
        columns = (last, [r.best.test[metric] for r in results], gaps, [r.last.train[metric] for r in results])
        cells = ["{:.2f} ± {:.2f}".format(*spread(column)) for column in columns]
        if results is first:
            cells[2] = ""
        seconds = spread([r.seconds for r in results])[0]
        lines.append(f"| {key} | {results[0].parameters:,} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def picture(table: Table, path: Path) -> None:
    """The test metric of each seed at the last epoch, with mean and standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(table) + 1, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, results in enumerate(table.values()):
        values = [r.last.test[r.metric] for r in results]
        mean, deviation = spread(values)
        axes.errorbar(place, mean, yerr=deviation, fmt="o", capsize=6, color="C0", markersize=8)
        axes.scatter([place + 0.15 + 0.05 * n for n in range(len(values))], values, color="C1", s=18, zorder=3)
        axes.annotate(
            f"{mean:.1f}", (place, mean), textcoords="offset points", xytext=(-12, 0), ha="right", va="center"
        )
    axes.set_xticks(range(len(table)), list(table))
    axes.set_xlim(-0.6, len(table) - 0.4)
    metric = next(iter(table.values()))[0].metric
    axes.set_ylabel(f"test {metric.replace('_', ' ')} (%), last epoch")
    axes.set_title("mean ± standard deviation (blue), seeds (orange)", fontsize="medium")
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
