import time

import pytest
import torch

from chainrule.rules import pytorch_formulas as formulas
from chainrule.rules.pytorch_formulas import formula


def test_every_differentiable_argument_has_its_text():
    found = formula("AddmmBackward0", "aten.addmm.default")
    assert found.schema.startswith("addmm(Tensor self, Tensor mat1, Tensor mat2")
    assert set(found.gradients) == {"self", "mat1", "mat2"}
    assert "grad" in found.gradients["self"]
    assert found.structure is None


def test_the_overload_decides():
    assert "other" in formula("AddBackward0", "aten.add.Tensor").gradients
    assert "other" not in formula("AddBackward0", "aten.add.Scalar").gradients


def test_marks_tell_the_structure_of_the_jacobian():
    assert formula("AcosBackward0", "aten.acos.default").structure == "elementwise"
    assert formula("TBackward0", "aten.t.default").structure == "linear"


def test_an_in_place_operation_falls_back_on_the_one_it_is_a_form_of():
    assert formula("SigmoidBackward0", "aten.sigmoid_.default").operation == "sigmoid"
    assert formula("AddBackward0", "aten.add_.Tensor").operation == "add.Tensor"


def test_several_arguments_may_share_one_text():
    shared = formula("CholeskySolveBackward0", "aten.cholesky_solve.default")
    assert shared.gradients["self"] == shared.gradients["input2"]


def test_what_has_no_gradient_is_kept_apart_by_kind():
    assert formula("NativeDropoutBackwardBackward0", "aten.native_dropout_backward.default").not_implemented == (
        "mask",
    )
    indexed = formula("IndexAddBackward0", "aten.index_add.default")
    assert "index" in indexed.not_differentiable
    assert "index" not in indexed.gradients


def test_the_default_dispatch_is_taken():
    assert formula("MeanBackward0", "aten.mean.default").gradients["self"].startswith("grad.expand")


def test_without_a_known_operation_the_node_name_decides():
    x = torch.ones(2, requires_grad=True)
    for out in (x.sigmoid(), x.view(1, 2), x.mean(0), x.pow(2), torch.stack([x]), x.sum(), x + 1, x.select(0, 1)):
        name = out.grad_fn.name()
        assert formula(name, name).schema, name


def test_a_users_function_has_none():
    assert formula("SquareBackward", "Square") is None


def test_every_entry_of_the_file_can_be_read():
    for operation in formulas._entries():
        assert formulas._parsed(operation).schema.startswith(operation + "(")


def test_a_torch_without_the_file_has_none(monkeypatch: pytest.MonkeyPatch):
    def nowhere(package):
        raise ModuleNotFoundError(package)

    formulas._entries.cache_clear()
    monkeypatch.setattr(formulas, "files", nowhere)
    try:
        assert formula("AddmmBackward0", "aten.addmm.default") is None
    finally:
        formulas._entries.cache_clear()


def test_one_formula_does_not_pay_for_the_whole_file():
    formulas._entries.cache_clear()
    formulas._parsed.cache_clear()
    began = time.perf_counter()
    formula("AddmmBackward0", "aten.addmm.default")
    assert time.perf_counter() - began < 0.5
