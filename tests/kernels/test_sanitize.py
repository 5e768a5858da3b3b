"""What the sanitizer is given runs: the same calls in Triton's interpreter, which cannot see what the tool sees."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from tests.kernels.sanitize import run_dense_cases

CUDA = torch.cuda.is_available()
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
def test_the_dense_cases_run() -> None:
    run_dense_cases("cuda" if CUDA else "cpu")
