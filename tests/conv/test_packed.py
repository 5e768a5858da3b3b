"""Projections of the same rows as one product: the same results and gradients, and the modules where they are more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from graphattn.conv import TransformerConv, _packed
from graphattn.conv._packed import project_together
from graphattn.conv._pyg import Linear

WIDTHS = (4, 4, 6)


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packed, "_pays", lambda x, width: x.shape[0] * width <= _packed._MOST)


def test_on_a_cpu_each_map_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, linears = rows(), maps()
    found = project_together(x, linears)
    assert len({out.untyped_storage().data_ptr() for out in found}) == 3
    agree(x, linears, found)


def maps(bias: bool = True) -> tuple[Linear, ...]:
    torch.manual_seed(0)
    return tuple(Linear(3, width, bias=bias).double() for width in WIDTHS)


def rows() -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def agree(x: Tensor, linears: tuple[Linear, ...], found: tuple[Tensor, ...]) -> None:
    expected = [linear(x) for linear in linears]
    leaves = [x, *(p for linear in linears for p in linear.parameters())]

    def results(outputs: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
        loss = sum((out.sin() * number).sum() for number, out in enumerate(outputs, 1))
        return [*outputs, *torch.autograd.grad(loss, leaves)]  # type: ignore[arg-type]

    torch.testing.assert_close(results(found), results(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients(bias: bool) -> None:
    x, linears = rows(), maps(bias)
    found = project_together(x, linears)
    assert len({out.untyped_storage().data_ptr() for out in found}) == 1
    agree(x, linears, found)


def test_with_and_without_bias() -> None:
    x, linears = rows(), (*maps(), *maps(False))
    agree(x, linears, project_together(x, linears))


def test_many_rows_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each result can be freed by itself."""
    x, linears = rows(), maps()
    monkeypatch.setattr(_packed, "_MOST", 5 * sum(WIDTHS) - 1)
    found = project_together(x, linears)
    assert len({out.untyped_storage().data_ptr() for out in found}) == 3
    agree(x, linears, found)


def test_hooks_are_called() -> None:
    x, linears, seen = rows(), maps(), []
    linears[1].register_forward_hook(lambda *_: seen.append(1))
    agree(x, linears, project_together(x, linears))
    assert len(seen) == 2


def test_what_is_more_than_a_linear_map_is_called() -> None:
    class Doubled(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x, linears = rows(), (*maps(), Doubled(3, 2).double())
    agree(x, linears, project_together(x, linears))
    normed = (*maps(), parametrizations.weight_norm(Linear(3, 2).double()))
    agree(x, normed, project_together(x, normed))


def test_a_forward_of_its_own_is_called() -> None:
    """As by those who move weights to where they are needed."""
    x, linears = rows(), maps()
    plain = linears[1].forward
    linears[1].forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]
    agree(x, linears, project_together(x, linears))


def test_hooks_on_all_modules_are_called() -> None:
    x, linears, seen = rows(), maps(), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        project_together(x, linears)
    finally:
        hook.remove()
    assert seen == [*linears]


def test_weights_of_a_kind_of_their_own_are_left_to_it() -> None:
    """As of quantised maps."""

    class Doubled(torch.nn.Parameter):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
            return 2 * result if func is torch.nn.functional.linear else result

    x, linears = rows(), maps()
    expected = 2 * linears[1](x)
    linears[1].weight = Doubled(linears[1].weight.detach())
    torch.testing.assert_close(project_together(x, linears)[1], expected)


def test_maps_of_several_dtypes_are_not_joined() -> None:
    x, linears = rows(), (*maps(), Linear(3, 2))
    with pytest.raises(RuntimeError, match="dtype"):
        project_together(x, linears)


def test_maps_that_do_not_learn_and_second_derivatives() -> None:
    x, linears = rows(), maps()
    linears[0].weight.requires_grad_(False)
    sum(out.sum() for out in project_together(x, linears)).backward()  # type: ignore[union-attr]
    assert linears[0].weight.grad is None and linears[1].weight.grad is not None
    leaves = [x, *linears[1].parameters(), *linears[2].parameters()]
    assert torch.autograd.gradgradcheck(lambda x, *_: tuple(y.sin() for y in project_together(x, linears)), leaves)


def test_through_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    x, conv = rows().detach()[:, :3], TransformerConv(3, 2, heads=2, backend="reference").double()
    edge_index = torch.tensor([[0, 1, 2, 4, 0], [1, 2, 0, 3, 3]])
    parameters = {name: p.detach() for name, p in conv.named_parameters()}

    def slope() -> dict[str, Tensor]:
        return torch.func.grad(lambda p: torch.func.functional_call(conv, p, (x, edge_index)).sin().sum())(parameters)

    found = slope()
    monkeypatch.setattr(_packed, "_pays", lambda x, width: False)
    torch.testing.assert_close(found, slope())


def test_a_wrapper_without_widths_is_called() -> None:
    """As adapters do, which put a module of another kind in the place of the map."""
    conv = TransformerConv(3, 2, heads=2)
    conv.lin_value = torch.nn.Sequential(conv.lin_value, torch.nn.Tanh())  # type: ignore[assignment]
    x, edge_index = torch.randn(4, 3), torch.tensor([[0], [1]])
    out = conv(x, edge_index)
    expected = torch.zeros(4, 4).index_copy(0, torch.tensor([1]), conv.lin_value(x[:1])) + conv.lin_skip(x)
    torch.testing.assert_close(out, expected)


def test_a_map_given_twice() -> None:
    x, linear = rows(), maps()[0]
    agree(x, (linear, linear), project_together(x, (linear, linear)))


def test_lazy_maps_are_made_by_their_first_call() -> None:
    conv = TransformerConv(-1, 2, heads=2)
    x, edge_index = torch.randn(4, 3), torch.tensor([[0, 1], [1, 2]])
    first = conv(x, edge_index)
    torch.testing.assert_close(conv(x, edge_index), first)
