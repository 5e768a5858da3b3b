"""Part of a comparison, in a process of its own: a teacher and its predictors, or some sparse networks.

    python -m experiments.sparsifiner.stages --config digits.yaml --out runs/x --seed 0 teacher
    python -m experiments.sparsifiner.stages --config digits.yaml --out runs/x --seed 0 sparsifiner-0.25 window-0.25

Called by experiments.sparsifiner.compare. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.images import evenly
from experiments.sparsifiner.variants import BUDGETS, PREDICTORS, Budget, Variant, variants_of

__all__ = ["budget_of", "main", "result_path", "state_path"]

_LOOKED_AT = 512  # test images, for what layers choose


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("names", nargs="+", help="'teacher', or names of variants")
    options = parser.parse_args(argv)

    from experiments.sparsifiner.build import load_config

    config = load_config(options.config, options.quick)
    work = _Work(config, options.out, options.seed, budget_of(config, options.quick), options.quick)
    known = {variant.name: variant for variant in variants_of(config["model"]["init_args"]["model"]["init_args"])}
    for name in options.names:
        if name == "teacher":
            work.teacher()
        else:
            work.variant(known[name])
    return 0


def budget_of(config: dict[str, Any], quick: bool = False) -> Budget:
    """The budget of a configuration's data set."""
    found = BUDGETS[config["data"]["init_args"]["name"]]
    return found._replace(reconstruction_epochs=1, distillation_epochs=1) if quick else found


def result_path(out: Path, seed: int, name: str) -> Path:
    """Where the figures of a network are."""
    return out / f"seed_{seed}" / f"{name}.json"


def state_path(out: Path, seed: int, name: str) -> Path:
    """Where the weights of a network are."""
    return out / f"seed_{seed}" / f"{name}.pt"


class _Work:
    def __init__(self, config: dict[str, Any], out: Path, seed: int, budget: Budget, quick: bool) -> None:
        from experiments.sparsifiner.build import data_of

        self.config, self.out, self.seed, self.budget = config, out, seed, budget
        self.data = data_of(config, seed)
        self.data.setup()
        cuda = torch.cuda.is_available() and config["trainer"].get("accelerator") != "cpu"
        self.device = torch.device("cuda" if cuda else "cpu")
        splits: Any = self.data.splits
        self.test = splits.test.to(self.device)
        if quick:
            self.test.images, self.test.labels = self.test.images[:32], self.test.labels[:32]

    def teacher(self) -> None:
        """The teacher and the predictors that learn from it."""
        from experiments.sparsifiner.build import accuracy, fit_teacher, network_of, reconstruct_only

        if not result_path(self.out, self.seed, "teacher").is_file():
            begin = time.monotonic()
            network = fit_teacher(self.config, self.data, self.seed).to(self.device)
            self._save("teacher", network, {"accuracy": accuracy(network, self.test)}, begin)
        teacher = self._load("teacher", network_of(self.config))
        for kind in PREDICTORS:
            if result_path(self.out, self.seed, kind).is_file():
                continue
            begin = time.monotonic()
            variants = [v for v in self._variants() if v.kind == kind]
            network = network_of(self.config, variants[0])
            reconstruct_only(self.config, self.data, self.budget, teacher, network, self.seed)
            figures = {v.name: self._quality(network.to(self.device), v.keep, dense=True) for v in variants}
            self._save(kind, network, {"quality": figures}, begin)

    def variant(self, variant: Variant) -> None:
        """One network: before stage 2 and after it."""
        from experiments.sparsifiner.build import accuracy, distill, network_of

        if result_path(self.out, self.seed, variant.name).is_file():
            return
        print(f"== {variant.name}, seed {self.seed}", flush=True)
        begin = time.monotonic()
        teacher = self._load("teacher", network_of(self.config))
        torch.manual_seed(self.seed)  # of random graphs
        network = network_of(self.config, variant).to(self.device)
        kind = variant.kind if variant.kind in PREDICTORS else "teacher"
        network.load_state_dict(torch.load(state_path(self.out, self.seed, kind), weights_only=True), strict=False)
        figures: dict[str, Any] = {"before": accuracy(network, self.test)}
        distill(self.config, self.data, self.budget, teacher, network, self.seed)
        network = network.to(self.device)
        figures["accuracy"] = accuracy(network, self.test)
        if variant.kind not in ("dense", "token-pruning"):
            figures["quality"] = self._quality(network, variant.keep, dense=False)
        self._save(variant.name, network, figures, begin)

    def _variants(self) -> list[Variant]:
        return variants_of(self.config["model"]["init_args"]["model"]["init_args"])

    def _quality(self, network: nn.Module, keep: float, *, dense: bool) -> list[dict[str, Any]]:
        """What each layer chooses; ``dense``: of what the teacher's attention would be."""
        from contextlib import nullcontext

        from graphattn.insight import selection_quality
        from graphattn.mechanisms import Sparsifiner
        from graphattn.mechanisms.reconstruction import dense_attention

        for module in network.modules():
            if isinstance(module, Sparsifiner):
                module.keep = keep
        network.eval()
        images: Tensor = self.test[evenly(len(self.test), _LOOKED_AT)]["x"]
        with torch.no_grad(), dense_attention(network) if dense else nullcontext():
            return [entry._asdict() for entry in selection_quality(network, images)]

    def _load(self, name: str, network: nn.Module) -> nn.Module:
        network.load_state_dict(torch.load(state_path(self.out, self.seed, name), weights_only=True))
        return network.to(self.device)

    def _save(self, name: str, network: nn.Module, figures: dict[str, Any], begin: float) -> None:
        """Weights first: figures say that both are there."""
        from graphattn._files import write_atomically

        state = {key: value.cpu() for key, value in network.state_dict().items()}
        write_atomically(state_path(self.out, self.seed, name), lambda file: torch.save(state, file))
        parameters = sum(p.numel() for p in network.parameters())
        figures |= {"parameters": parameters, "seconds": time.monotonic() - begin, "device": str(self.device)}
        text = json.dumps(figures, indent=1)
        write_atomically(result_path(self.out, self.seed, name), lambda file: file.write(text.encode()))
        print(f"== {name}: {figures.get('accuracy', '')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
