import pytest
import torch

import chainrule
from tests.mutants import Operation, make
from tests.mutants.operations import OPERATIONS
from tests.precision import (
    DTYPES,
    FUNCTIONS,
    NOT_IN_BFLOAT16,
    SEEN,
    false_alarms,
    is_seen,
    network_alarms,
    one_wrong_element,
)


@pytest.mark.parametrize(
    "dtype", [pytest.param(dtype, marks=[pytest.mark.slow] * (dtype != torch.float32)) for dtype in DTYPES]
)
def test_a_small_error_is_seen_and_a_right_gradient_that_rounds_badly_is_not(dtype):
    for operation in OPERATIONS[4:40:25]:
        assert is_seen(operation, dtype, SEEN[dtype]), operation.name
    for name in ("variance near 10,000", "norm of a large offset"):
        torch.manual_seed(0)
        function, given = FUNCTIONS[name]
        assert not chainrule.verify(function, *(x.to(dtype) for x in given())).failures, name


def test_norms_of_numbers_near_100_raise_no_alarm():
    """What float32 rounds there is decided in float64, with our rule's gradient in float64 too."""
    assert [*network_alarms(torch.float32, [3])] == []


def test_one_wrong_element_of_many_is_seen():
    assert one_wrong_element(200_000, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_path_that_is_wrong_in_a_coarse_type_alone_is_no_rounding(dtype):
    wrong = {"x": lambda g, s: (3 if g.dtype == torch.float64 else 30) * g}
    function = make(Operation("three times", lambda x: 3 * x, {"x": (2,)}, {}), wrong)
    assert chainrule.verify(function, torch.tensor([1.0, 2.0], dtype=dtype)).failures


@pytest.mark.parametrize(("dtype", "uses"), [(torch.float64, 400), (torch.float32, 1000)])
def test_a_sum_over_many_uses_rounds_more(dtype, uses):
    w, rows = torch.randn(50, dtype=dtype, requires_grad=True), torch.rand(uses, 50, dtype=dtype)
    with chainrule.record(namespace={}) as recording:
        sum((w * row).sum() for row in rows).backward()
    assert recording.verify(only="AccumulateGrad").passed


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_and_thirty_networks(dtype):
    left_out = NOT_IN_BFLOAT16 if dtype == torch.bfloat16 else set()
    tried = [operation for operation in OPERATIONS if operation.name not in left_out]
    assert [operation.name for operation in tried if not is_seen(operation, dtype, SEEN[dtype])] == []
    assert all(one_wrong_element(count, dtype) for count in (1000, 1_000_000))
    assert [*false_alarms(dtype, 3), *network_alarms(dtype, range(30))] == []
