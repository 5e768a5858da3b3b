"""The row that a submission needs; made and printed without Lightning."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphattn.errors import ConfigError
from graphattn.training.leaderboard.options import LeaderboardOptions, PublishedEntry
from graphattn.training.results import Results, without_nan

__all__ = ["Row", "SeedFigures", "Stat", "make_row"]

_VERSIONS = ("graphattn", "ogb", "torch", "torch-geometric", "lightning", "python", "cuda")


@dataclass
class Stat:
    """Mean and unbiased (n - 1) standard deviation; of one value, or of a hidden split, ``std`` is ``None``."""

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        """The statistic of one figure a seed."""
        if not all(map(math.isfinite, values)):
            return cls(None, None)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def scaled(self, factor: float) -> Stat:
        """In another unit."""
        return Stat(*(None if value is None else value * factor for value in (self.mean, self.std)))

    def text(self, digits: int = 4) -> str:
        """``0.7880 ± 0.0101``."""
        if self.mean is None:
            return "-"
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


@dataclass
class SeedFigures:
    """One run at the epoch with its best validation figure."""

    seed: int
    epoch: int
    validation: float
    test: float
    epochs: int
    seconds: float


@dataclass
class Row:
    """A leaderboard row.

    Args:
        options: What the row is about, with the published entries beside it.
        draft: Why it is no row to submit; empty: it is one.
        metric: Name of the metric.
        label: The same for people, with its unit.
        mode: ``"min"`` or ``"max"``.
        test: Over the seeds, each at its epoch of the best validation figure.
        validation: Of the same epochs.
        seeds: Each seed's figures.
        parameters: Number of parameters, embeddings included.
        hardware: Device and memory, each kind once.
        versions: Versions of packages, each once; ``commit`` too.
        command: The command that made it.
    """

    options: LeaderboardOptions
    draft: str
    metric: str
    label: str
    mode: str
    test: Stat
    validation: Stat
    seeds: list[SeedFigures]
    parameters: int
    hardware: list[str]
    versions: dict[str, list[str]]
    command: str

    @property
    def percent(self) -> bool:
        """Whether the run's own unit is per cent, where OGB's evaluators and forms have fractions."""
        return self.label.endswith("(%)")

    def to_json(self) -> str:
        """JSON text; ``evaluator`` has the figures in the unit of OGB's evaluators."""
        factor = 0.01 if self.percent else 1.0
        values = {
            **asdict(self),
            "evaluator": {
                "test": asdict(self.test.scaled(factor)),
                "validation": asdict(self.validation.scaled(factor)),
            },
        }
        return json.dumps(without_nan(values), indent=2) + "\n"

    def to_markdown(self) -> str:
        """The text that a person reads and copies from."""
        options, digits = self.options, 2 if self.percent else 4
        lines = [f"# {options.dataset}: {options.method}", ""]
        if self.draft:
            lines += [f"**DRAFT, not a leaderboard row: {self.draft}.**", ""]
        rows = {
            f"Test {self.label}": "hidden labels" if options.hidden_test else self.test.text(digits),
            f"Validation {self.label}": self.validation.text(digits),
        }
        if self.percent:
            rows["In the evaluator's unit"] = (
                f"test {self.test.scaled(0.01).text()}, validation {self.validation.scaled(0.01).text()}"
            )
        rows |= {
            "Seeds": f"{len(self.seeds)}: {', '.join(str(found.seed) for found in self.seeds)}",
            "Parameters": f"{self.parameters:,}",
            "External data": "yes" if options.external_data else "no",
            "Hardware": "; ".join(self.hardware),
            "Versions": ", ".join(
                f"{name} {' / '.join(self.versions[name])}" for name in _VERSIONS if self.versions[name]
            ),
            "Commit": " / ".join(self.versions["commit"]) or "not in a git repository",
            "Command": f"`{self.command}`",
        }
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
        lines += [
            "Mean ± unbiased standard deviation over the seeds, each at the epoch of its best validation figure.",
            *(["Not all seeds ran at one commit."] if len(self.versions["commit"]) > 1 else []),
            "",
            "| seed | best epoch | validation | test | epochs | minutes |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
        for found in self.seeds:
            figures = " | ".join(Stat.of([value]).text(digits) for value in (found.validation, found.test))
            lines.append(f"| {found.seed} | {found.epoch} | {figures} | {found.epochs} | {found.seconds / 60:.1f} |")
        lines += ["", *self._comparison(digits)]
        return "\n".join(lines)

    def _comparison(self, digits: int) -> list[str]:
        arrow = "↓" if self.mode == "min" else "↑"
        ours = PublishedEntry(
            f"{self.options.method} (this run{', draft' if self.draft else ''})",
            "this run",
            self.test.mean,
            self.test.std,
            self.validation.mean,
            self.validation.std,
            self.parameters,
            self.options.external_data,
        )
        lines = [
            f"| method | test {self.label} {arrow} | validation | parameters | external data | source |",
            "|---|---:|---:|---:|---|---|",
        ]
        for entry in sorted([*self.options.published, ours], key=self._rank):
            cells = [
                entry.method,
                Stat(entry.test, entry.test_std).text(digits),
                Stat(entry.validation, entry.validation_std).text(digits),
                "-" if entry.parameters is None else f"{entry.parameters:,}",
                "yes" if entry.external_data else "no",
                entry.source,
            ]
            if entry is ours:
                cells = [f"**{cell}**" for cell in cells]
            lines.append(f"| {' | '.join(cells)} |")
        return [*lines, ""]

    def _rank(self, entry: PublishedEntry) -> tuple[bool, float]:
        """Best first; those without a figure of the split that decides come last."""
        value = entry.validation if self.test.mean is None else entry.test
        return value is None, 0.0 if value is None else value if self.mode == "min" else -value


def make_row(
    options: LeaderboardOptions, results: Sequence[Results], *, label: str, mode: str, draft: str, command: str
) -> Row:
    """Put the runs of all seeds together.

    Args:
        options: What the row is about.
        results: The finished runs; their folders hold ``versions.json``.
        label: The metric's name and unit for people.
        mode: ``"min"`` or ``"max"``.
        draft: Why it is no row to submit; empty: it is one.
        command: The command that made it.

    Raises:
        ConfigError: If a run did not log its metric.
    """
    metric = results[0].metric
    figures = []
    for found in results:
        for stage in ("val", "test"):
            logged = getattr(found.best, stage)
            if metric not in logged:
                raise ConfigError(
                    f"seed {found.seed} logged no {stage}/{metric}, which the row is about; "
                    f"logged: {', '.join(f'{stage}/{name}' for name in sorted(logged)) or f'nothing of {stage}'}"
                )
        best = found.best
        figures.append(
            SeedFigures(
                seed=found.seed,
                epoch=best.epoch,
                validation=best.val[metric],
                test=math.nan if options.hidden_test else best.test[metric],
                epochs=found.epochs,
                seconds=found.seconds,
            )
        )
    ran_with = [_versions(found) for found in results]
    return Row(
        options=options,
        draft=draft,
        metric=metric,
        label=label,
        mode=mode,
        test=Stat.of([found.test for found in figures]),
        validation=Stat.of([found.validation for found in figures]),
        seeds=figures,
        parameters=results[0].parameters,
        hardware=_each_once(_hardware(found) for found in ran_with),
        versions={name: _each_once(found.get(name) for found in ran_with) for name in (*_VERSIONS, "commit")},
        command=command,
    )


def _versions(results: Results) -> dict[str, Any]:
    path = Path(results.folder) / "versions.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _hardware(versions: dict[str, Any]) -> str:
    memory = versions.get("memory_gib")
    return versions.get("device", "unknown") + (f", {memory:g} GiB" if memory else "")


def _each_once(values: Any) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))
