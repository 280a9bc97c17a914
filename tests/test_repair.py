"""Mistakes that the mutants do not make; what is recognised there is in tests/mutants."""

import pytest
import torch
from torch.autograd import Function

import chainrule


def function(forward, backward):
    """An autograd.Function of two inputs, which saves both."""

    def run(ctx, x, y):
        ctx.save_for_backward(x, y)
        return forward(x, y)

    return type(
        "Wrong",
        (Function,),
        {"forward": staticmethod(run), "backward": staticmethod(lambda ctx, g: backward(g, *ctx.saved_tensors))},
    )


def mistakes(forward, backward, *shapes):
    (row,) = chainrule.verify(function(forward, backward), *(torch.randn(shape) for shape in shapes)).failures
    return {repair.argument: (repair.kind, repair.text) for repair in row.repairs}


def test_gradients_that_are_swapped():
    found = mistakes(torch.mul, lambda g, x, y: (g * x, g * y), (3, 4), (3, 4))
    assert {kind for kind, _ in found.values()} == {"swapped"}
    assert "what came back for `y` is the gradient of `x`" in found["x"][1]


@pytest.mark.parametrize("shape", [(5, 6), (50, 60)])
def test_a_mean_without_its_1_over_n(shape):
    found = mistakes(lambda x, y: (x * y).mean(), lambda g, x, y: (g * y, g * x / x.numel()), shape, shape)
    n = shape[0] * shape[1]
    assert found["x"][0] == "1/N"
    assert f"divided by N = {n}, the number of elements of `x`" in found["x"][1]
    assert "y" not in found


def test_a_shift_that_lost_the_edge():
    def backward(g, x, y):
        shifted = torch.zeros_like(g)
        shifted[1:] = (g * y)[:-1]
        return shifted, g * x

    assert mistakes(torch.mul, backward, (7,), (7,))["x"][0] == "shifted"


def test_a_term_too_many():
    found = mistakes(torch.mul, lambda g, x, y: (g * y + g * x, g * x), (3, 4), (3, 4))
    assert found["x"][0] == "extra term"


def test_the_gradient_read_in_the_wrong_order():
    found = mistakes(lambda x, y: x.sin() + y, lambda g, x, y: ((g * x.cos()).t().reshape(3, 4), g), (3, 4), (3, 4))
    assert found["x"][0] == "transpose"


def test_what_is_not_recognised_is_said_and_not_guessed():
    found = mistakes(
        lambda x, y: torch.linalg.matrix_exp(x) + y,
        lambda g, x, y: (g * torch.erf(x) * y.exp() + x**3, g),
        (3, 3),
        (3, 3),
    )
    assert found["x"] == ("not recognised", "what is wrong with the gradient of `x` was not recognised")


def test_what_the_gradient_should_be_is_said_where_no_single_mistake_explains_it():
    found = mistakes(
        lambda x, y: x.sin() * y, lambda g, x, y: (g * torch.erf(x) * y.exp() + x**3, g * x.sin()), (3, 4), (3, 4)
    )
    kind, text = found["x"]
    assert kind == "wrong expression"
    assert "`y` times the derivative of `x.sin()` times the upstream gradient" in text


def test_the_document_says_it():
    wrong = function(torch.mul, lambda g, x, y: (1.01 * g * y, g * x))
    told = chainrule.verify(wrong, torch.randn(3, 4), torch.randn(3, 4)).document()
    words = str(told.sections[-1].blocks)
    assert "the factor 1.01 is too many" in words
    assert "test_repair.py:" in words


def told(function, *inputs):
    (row,) = chainrule.verify(function, *inputs).failures
    return [(repair.kind, repair.text) for repair in row.repairs]


def test_a_number_in_one_step():
    ((kind, text),) = mistakes(
        lambda x, y: x * y + x.sin(), lambda g, x, y: (g * y + 2 * (g * x.cos()), g * x), (4,), (4,)
    ).values()
    assert kind in ("wrong number", "extra factor")
    assert "2" in text
    assert "`2 * (g * x.cos())`" in text


def test_a_number_where_an_input_belongs():
    found = mistakes(torch.mul, lambda g, x, y: (g * 2, g * x), (4,), (4,))
    assert found["x"][0] == "wrong operand"
    assert found["x"][1].startswith("the number 2 should be `y` in ")


class Power(Function):
    @staticmethod
    def forward(ctx, x, p):
        ctx.save_for_backward(x)
        ctx.p = p
        return x**p

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x ** (ctx.p - 1), None


def test_a_number_that_the_forward_was_given_rather_than_a_size_that_equals_it():
    ((kind, text),) = told(Power, torch.rand(2, 3) + 0.5, 3)
    assert (kind, text) == ("factor", "a factor `p` = 3 is missing in the gradient of `x`: multiplied by it, it agrees")


def test_a_missing_conjugate():
    class Square(Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    z = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    with chainrule.record() as recording:
        (Square.apply(z) * torch.randn(3, dtype=torch.complex128)).real.sum().backward()
    ((repair,),) = [row.repairs for row in recording.verify().failures]
    assert repair.kind == "conjugate"
    assert "`z` is not conjugated" in repair.text


def test_a_forward_without_a_derivative_is_named():
    class Rounded(Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, g):
            return -g

    ((kind, text),) = told(Rounded, torch.tensor([1.2, 0.6, -3.3]))
    assert kind == "flat forward"
    assert "its derivative is 0, while backward gives a gradient of its own" in text


def test_an_output_that_is_kept_and_then_overwritten():
    class Exp(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.out = x.exp()
            return ctx.out

        @staticmethod
        def backward(ctx, g):
            return g * ctx.out

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with chainrule.record() as recording:
        out = Exp.apply(x)
        with torch.no_grad():
            out.mul_(2)
        out.sum().backward()
    ((repair,),) = [row.repairs for row in recording.verify().failures]
    assert repair.kind == "overwritten"


class Tripled(Function):
    """Writes to its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_a_function_that_writes_to_its_input_is_one_operation_and_its_mistake_is_recognised():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with chainrule.record() as recording:
        before = x * 1
        after = Tripled.apply(before)
        (after * after).sum().backward()
    assert before is after
    assert recording["before"].data.tolist() == [1, 2]
    assert recording["after"].data.tolist() == [3, 6]
    rows = recording.verify().rows
    assert [row.verdict for row in rows] == ["agrees", "agrees", "disagrees", "agrees", "agrees"]
    assert "the number 2 should be 3 in `return 2 * g` (test_repair.py:" in rows[2].repairs[0].text


def test_the_steps_of_a_backward_go_by_the_names_that_they_have_in_it():
    def backward(g, x, w):
        return g @ w.T, x.T @ g

    found = mistakes(torch.matmul, lambda g, x, w: (g @ w, x.T @ g), (3, 3), (3, 3))
    assert "`get`" not in found["x"][1]
    assert found["x"][1].startswith("`y` should be transposed in `g @ w` (test_repair.py:")
    assert chainrule.verify(function(torch.matmul, backward), torch.randn(3, 3), torch.randn(3, 3)).passed


def test_a_verification_prints_its_report():
    verification = chainrule.verify(function(torch.mul, lambda g, x, y: (-g * y, g * x)), torch.ones(2), torch.ones(2))
    assert str(verification).startswith("Verification\n")
    assert "the sign of the gradient of x is wrong" in str(verification)
    assert repr(verification) == "<chainrule.Verification: 1 disagree, 3 nodes, 2 explained by a rule>"


def test_a_backward_that_makes_tensors_of_its_own_is_tried_in_float64_too():
    class Rows(Function):
        @staticmethod
        def forward(ctx, table, places):
            ctx.save_for_backward(places)
            ctx.shape = table.shape
            return table[places]

        @staticmethod
        def backward(ctx, g):
            (places,) = ctx.saved_tensors
            return 2 * torch.zeros(ctx.shape).index_add_(0, places, g), None

    (row,) = chainrule.verify(Rows, torch.randn(5, 3), torch.tensor([0, 2, 2, 4])).failures
    assert [(each.kind, each.argument) for each in row.repairs] == [("factor", "table")]
    assert "is 2 times what it should be" in row.repairs[0].text


def test_a_step_that_takes_a_tensor_of_the_backward_s_own_is_run_again():
    found = mistakes(torch.matmul, lambda g, x, y: (g @ torch.eye(2) @ y.t().flip(0), x.t() @ g), (4, 3), (3, 2))
    assert found["x"][1].startswith("the `flip` is too many in `y.t().flip(0)`")


@pytest.mark.parametrize("normalise", [torch.softmax, torch.log_softmax])
def test_the_diagonal_of_the_jacobian_alone(normalise):
    class Diagonal(Function):
        @staticmethod
        def forward(ctx, x):
            y = normalise(x, -1)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, g):
            (y,) = ctx.saved_tensors
            return g * y * (1 - y) if normalise is torch.softmax else g * (1 - y.exp())

    (row,) = chainrule.verify(Diagonal, torch.randn(2, 4)).failures
    (repair,) = row.repairs
    assert repair.kind == "missing term"
    assert "made of the diagonal of the Jacobian alone" in repair.text


class Exp(Function):
    """It keeps its output, and half of it."""

    half = None

    @staticmethod
    def forward(ctx, x):
        ctx.out = x.exp()
        ctx.half = Exp.half = ctx.out / 2
        return ctx.out

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.out / 2 + ctx.half)


@pytest.mark.parametrize(
    ("write", "kind", "said"),
    [
        (lambda out: out.mul_(2), "overwritten", "`out.mul_(2)` (test_repair.py:"),
        (lambda out: out.view(-1)[:1].add_(2), "overwritten", "(test_repair.py:"),
        (lambda out: Exp.half.mul_(2), "changed", "changed in between, or a hook"),
    ],
)
def test_a_write_is_named_where_the_recording_shows_it(write, kind, said):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with chainrule.record() as recording:
        out = Exp.apply(x)
        with torch.no_grad():
            write(out)
        (out * torch.tensor([1.0, 3.0])).sum().backward()
    (repair,) = [repair for row in recording.verify().failures for repair in row.repairs]
    assert (repair.kind, said in repair.text) == (kind, True)


def test_where_a_gradient_is_wrong_and_what_it_should_be_there():
    def backward(g, x, y):
        dx = g * y
        dx[-1] = 0
        return dx, torch.where(x < 0, x, g * x)

    found = mistakes(torch.mul, backward, (4, 5), (4, 5))
    assert found["x"][1].startswith("the gradient of `x` is wrong in the last row, at all 5 elements")
    assert "the upstream gradient is missing" in found["y"][1]
    assert "the gradient of `y` is wrong where `x` is negative" in found["y"][1]


class Normalised(Function):
    """Adds eps outside of the root."""

    @staticmethod
    def forward(ctx, x, eps):
        ctx.save_for_backward(x)
        ctx.eps = eps
        return (x * x + eps).sqrt()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        root = (x * x).sqrt() + ctx.eps
        return g * x / root, None


def test_eps_outside_of_the_root_and_its_line():
    ((kind, text),) = told(Normalised, torch.randn(3, 4), 0.1)
    assert kind == "epsilon"
    assert text.startswith(
        "0.1 is added outside of `sqrt`, and not inside in `root = (x * x).sqrt() + ctx.eps` (test_repair.py:"
    )


class Saved(Function):
    """Saves its input, and reads it as its output."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y


def test_what_two_repairs_explain_is_said_of_both():
    ((_, text),) = told(Saved, torch.randn(3, 4))
    assert text.startswith("either `x` stands where the output should")
    assert "; or `exp` of `x` is missing" in text


def test_the_turns_of_a_loop_change_together():
    def backward(g, x, y):
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        for row in range(len(x)):
            dx[row] = g[row] * y
            dy += x[row]
        return dx, dy

    found = mistakes(lambda x, y: (x * y).sum(1), backward, (4, 3), (3,))
    assert set(found) == {"y"}
    assert found["y"][1].startswith("the upstream gradient is missing in `dy += x[row]`")


def test_the_rows_of_a_forgotten_upstream_gradient_are_named():
    def backward(ctx, g):
        x, index = ctx.saved_tensors
        return torch.cos(x) * torch.ones_like(g[index]), None

    def forward(ctx, x, index):
        ctx.save_for_backward(x, index)
        return torch.zeros(3, x.shape[1]).to(x).index_add(0, index, x.sin())

    gather = type("Gather", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
    (row,) = chainrule.verify(gather.apply, torch.randn(6, 2), torch.tensor([0, 2, 1, 1, 0, 2])).failures
    assert [repair.kind for repair in row.repairs] == ["missing factor"]
    assert "the upstream gradient at `index` is missing" in row.repairs[0].text


def test_a_few_elements_are_not_wrong_for_the_sign_of_a_constant():
    def forward(ctx, x, w):
        ordered, places = x.sort(descending=True)
        ctx.save_for_backward(ordered, places, w)
        return ordered.relu() @ w

    def backward(ctx, g):
        ordered, places, w = ctx.saved_tensors
        return (g * w * (ordered > 0))[places], None  # and not put at these places

    lovasz = type("Lovasz", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
    generator = torch.Generator().manual_seed(4005689710)
    x, w = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in "xw")
    x.requires_grad_()
    with chainrule.record() as recording:
        (0.2 * lovasz.apply(x * 1.0, w)).sin().backward()
    (row,) = recording.verify().failures
    assert [repair.kind for repair in row.repairs] == ["permutation"]
    assert "the permutation `places` stands where its inverse should" in row.repairs[0].text


def test_a_number_that_is_assigned_is_no_index():
    def backward(g, x, y):
        dx = g.clone()
        dx[x > 0.8] = 1
        return dx, g

    found = mistakes(lambda x, y: x.clamp(max=0.8) + y, backward, (6, 5), (6, 5))
    assert found["x"][0] == "wrong number"
    assert "the number 1 should be 0" in found["x"][1]


def scan(backward):
    """An exponential mean over rows, whose backward goes from the last one to the first."""

    def forward(ctx, x, a):
        h, rows = torch.zeros_like(a), []
        for row in x:
            h = a * h + row
            rows.append(h)
        y = torch.stack(rows)
        ctx.save_for_backward(x, a, y)
        return y

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    (row,) = chainrule.verify(type("Scan", (Function,), members), torch.randn(6, 3), torch.rand(3)).failures
    return {repair.argument: repair for repair in row.repairs}


def test_what_a_loop_does_not_carry_over():
    def backward(ctx, g):
        x, a, y = ctx.saved_tensors
        dx, da, dh = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(a)
        for t in reversed(range(len(x))):
            dh = g[t]  # and not dh + g[t]
            before = y[t - 1] if t else torch.zeros_like(a)
            dx[t] = dh
            da = da + dh * before
            dh = dh * a
        return dx, da

    found = scan(backward)
    assert {repair.kind for repair in found.values()} == {"missing term"}
    assert "what the turn before left in `dh` is missing as a term in `dh = g[t]" in found["a"].text


def test_a_factor_that_each_turn_of_a_loop_forgets():
    def backward(ctx, g):
        x, a, y = ctx.saved_tensors
        dx, da, dh = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(a)
        for t in reversed(range(len(x))):
            dh = dh + g[t]  # and then dh = dh * a
            before = y[t - 1] if t else torch.zeros_like(a)
            dx[t] = dh
            da = da + dh * before
        return dx, da

    found = scan(backward)
    assert {repair.kind for repair in found.values()} == {"missing factor"}
    assert "`a` is missing as a factor in `dh = dh + g[t]" in found["x"].text


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda g, order: g[order], "the permutation `order` stands where its inverse should"),
        (lambda g, order: g, "is in another order: the permutation `order` is missing"),
    ],
)
def test_a_permutation_that_is_not_undone(wrong, problem):
    def forward(ctx, x, order):
        ctx.save_for_backward(x, order)
        return x[order].sin()

    def backward(ctx, g):
        x, order = ctx.saved_tensors
        back = wrong(g, order)
        return back * x.cos(), None

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    (row,) = chainrule.verify(
        type("Order", (Function,), members), torch.randn(4, 3), torch.tensor([2, 0, 3, 1])
    ).failures
    assert row.repairs[0].kind == "permutation"
    assert problem in row.repairs[0].text


def test_index_put_that_overwrites():
    index = torch.tensor([0, 2, 0, 1, 2])

    def backward(g, x, y):
        return torch.zeros_like(x).index_put_((index,), g), torch.zeros_like(y)

    kind, text = mistakes(lambda x, y: x[index] + 0 * y.sum(), backward, (4, 3), (2,))["x"]
    assert kind == "operator"
    assert "with `accumulate=True`" in text


def test_columns_are_not_wrong_for_the_sign_of_a_few_numbers():
    def backward(g, x, y):
        wrong = 2 * g
        wrong[:, 0] = g[:, 0]
        return wrong, -(g.sum(0) * 0) + g.sum(0)

    torch.manual_seed(0)
    y = torch.tensor([0.5, -1.0, -0.3, -2.0])  # negative in the columns that are wrong
    members = {
        "forward": staticmethod(lambda ctx, x, y: (ctx.save_for_backward(x, y), x + y)[1]),
        "backward": staticmethod(lambda ctx, g: backward(g, *ctx.saved_tensors)),
    }
    (row,) = chainrule.verify(type("Columns", (Function,), members), torch.randn(5, 4), y).failures
    assert "in all but the first column" in row.repairs[0].text


def test_what_all_gradients_lack_is_no_slip_in_a_line():
    def backward(g, x, y):
        d = g * 2 * (x - y)  # and not divided by the 4 elements
        return d, -d

    found = mistakes(lambda x, y: (x - y).square().mean(), backward, (2, 2), (2, 2))
    assert {kind for kind, _ in found.values()} == {"1/N"}
