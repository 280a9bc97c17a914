"""A Jacobian that is written out, multiplied by the numbers beside it, gives those below it: the gradient."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

import chainrule
from chainrule import document


def transformed(x: Tensor) -> Tensor:
    y = torch.fft.rfft(x)
    return (y.real * torch.tensor([1.0, 2, 3]) + y.imag * torch.tensor([1.0, -2, 0.5])).sum()


def turned(x: Tensor) -> Tensor:
    return torch.polar(x, 2 * x).real.sum() + (x * torch.tensor([1j, 2 - 1j, 1, 0.5j])).abs().sum()


def squared(x: Tensor) -> Tensor:
    z = torch.complex(x[:2], x[2:])
    return (z * z * (1 + 2j)).abs().sum()


def real(x: Tensor) -> Tensor:
    return (x.softmax(0) * x).square().sum()


def tensors(sections: Sequence[document.Section]) -> Iterator[document.Tensor]:
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, document.Tensor))
        yield from tensors(section.sections)


def shown(step: Callable[[Tensor], Tensor], x: Tensor) -> list[document.Tensor]:
    with chainrule.record() as recording:
        step(x).backward()
    return [*tensors(recording.document().sections)]


def wide(entries: Sequence[complex] | None) -> Tensor:
    assert entries is not None
    return torch.tensor([complex(each) for each in entries], dtype=torch.complex128)


@pytest.mark.parametrize("step", [transformed, turned, squared, real])
def test_the_product_at_the_margin_is_the_gradient(step: Callable[[Tensor], Tensor]) -> None:
    every = shown(step, torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64, requires_grad=True))
    assert any(each.product for each in every)
    for place, each in enumerate(every):
        if each.upstream is None or each.product is None:
            continue
        result = next(later for later in every[place + 1 :] if later.symbol == each.product.symbol)
        product = wide(each.upstream.entries) @ wide(each.entries).view(each.shape)
        torch.testing.assert_close(wide(each.product.entries), wide(result.entries))
        if "complex" not in result.dtype:
            product = product.real + 0j
        torch.testing.assert_close(product, wide(result.entries))


def test_of_a_complex_output_the_conjugate_is_written_out() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    (of_z,) = (each for each in shown(lambda z: (z * 1j).abs().sum(), z) if "overline" in each.symbol)
    assert of_z.entries == (-1j, 0, 0, -1j)  # the conjugate of d(z i)/dz = i


def test_a_jacobian_that_is_no_one_matrix_is_not_written_out() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    with chainrule.record() as recording:
        (torch.conj_physical(z) * 1j).abs().sum().backward()
    assert "the operation is not holomorphic" in str(recording.document())
