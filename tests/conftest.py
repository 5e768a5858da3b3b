"""What all tests share: seeds, markers, optional packages that must be there, NaN-filled allocations."""

from __future__ import annotations

import importlib.util
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphattn.testing import module_name, require_or_skip, required_packages

# Read by packages when they are first imported, so set before any test module is.
os.environ.setdefault("DGLBACKEND", "pytorch")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    import hypothesis
except ImportError:
    pass
else:
    # No deadline: the first example pays for compilation. In CI the same examples each time.
    hypothesis.settings.register_profile("graphattn", deadline=None, derandomize="CI" in os.environ)
    hypothesis.settings.load_profile("graphattn")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Each test starts from the same random state, alone or in the whole suite."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def nan_filled_allocations() -> Iterator[None]:
    """``torch.empty`` gives NaN (integers: the largest), so reading memory that nobody wrote shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture
def ogb_files(tmp_path: Path) -> Any:
    """Writes small data sets below ``tmp_path / "ogb_root"``, in OGB's own form: ``ogb_files.write("ogbg-molhiv")``."""
    spec = importlib.util.spec_from_file_location("ogb_files", Path(__file__).with_name("ogb_files.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OgbFiles(tmp_path / "ogb_root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for marker in item.iter_markers("requires"):
        for name in marker.args:
            require_or_skip(name)


# A skip for want of a package that GRAPHATTN_REQUIRE lists becomes a failure, however the test asked for it.


def _names_required_package(reason: str) -> str | None:
    """The required package that a skip's reason speaks of, if any."""
    if "GRAPHATTN_DATA" in reason:  # missing data, not a missing package
        return None
    for name in sorted(required_packages()):
        words = "|".join(map(re.escape, {name, module_name(name), module_name(name).replace("_", "-")}))
        if re.search(rf"(?<![\w/.-])({words})(?![\w/-])", reason, flags=re.IGNORECASE):
            return name
    return None


def _fail_required(report: Any) -> Any:
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    name = _names_required_package(reason)
    if name is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped, but GRAPHATTN_REQUIRE lists {name}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    return _fail_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    return _fail_required((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    required = ", ".join(sorted(required_packages())) or "none"
    terminalreporter.write_line(f"skipped tests: {skipped} (packages that may not be missing: {required})")
