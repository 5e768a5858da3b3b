from __future__ import annotations

import numpy as np
import pytest
import torch

from graphattn.encoding import flip_signs
from graphattn.encoding.sign import fix_signs
from graphattn.errors import ArgumentError, ArgumentTypeError

PTR = torch.tensor([0, 3, 3, 4, 9])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_column_of_a_graph_flips_as_a_whole():
    pe = torch.rand(9, 40) + 1
    before = pe.clone()
    ratio = flip_signs(pe, "graph", ptr=PTR, generator=generator()) / pe
    assert torch.equal(pe, before)
    assert ratio.unique().tolist() == [-1, 1]
    for start, stop in ((0, 3), (4, 9)):
        assert torch.equal(ratio[start:stop], ratio[start : start + 1].expand(stop - start, 40))
    assert not torch.equal(ratio[0], ratio[3]) and not torch.equal(ratio[3], ratio[4])


def test_one_draw_for_the_batch():
    ratio = flip_signs(torch.ones(9, 40), "batch", ptr=PTR, generator=generator())
    assert torch.equal(ratio, ratio[:1].expand(9, 40)) and ratio.unique().tolist() == [-1, 1]
    assert torch.equal(ratio, flip_signs(torch.ones(9, 40), "graph", generator=generator()))


def test_signs_come_from_the_generator_given_and_else_from_torchs():
    pe = torch.ones(5, 64)
    state = torch.get_rng_state()
    first = flip_signs(pe, generator=generator(3))
    assert torch.equal(first, flip_signs(pe, generator=generator(3)))
    assert not torch.equal(first, flip_signs(pe, generator=generator(4)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(flip_signs(pe), first)


def test_empty():
    assert flip_signs(torch.zeros(0, 3), ptr=torch.tensor([0])).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    assert flip_signs(torch.ones(2, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"pe": torch.ones(9, 2).long()}, ArgumentTypeError, "pe must be a floating tensor"),
        ({"pe": torch.ones(9)}, ArgumentError, r"pe must have shape \[N, k\], got \[9\]"),
        ({"per": "node"}, ArgumentError, "per must be one of 'graph', 'batch', got 'node'"),
        ({"ptr": torch.tensor([0, 4])}, ArgumentError, "rows of pe, 9"),
    ],
)
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        flip_signs(**{"pe": torch.ones(9, 2), **arguments})


def test_fixed_signs_do_not_hang_on_rounding():
    vector = np.array([[0.1], [-0.5], [0.5], [0.3]])
    expected = -vector
    assert np.array_equal(fix_signs(vector), expected)
    for noise in (1e-9, -1e-9):
        noisy = vector + noise * np.array([[0.0], [0.0], [1.0], [0.0]])
        assert np.array_equal(np.sign(fix_signs(noisy)), np.sign(expected))
        assert np.array_equal(np.sign(fix_signs(-noisy)), np.sign(expected))
