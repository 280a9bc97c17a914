"""Gradient checks of a step, and a wrong backward, for several files of tests."""

from torch.autograd import Function

import chainrule


def recorded(step):
    with chainrule.record() as recording:
        step()
    return recording.graph


def verify(graph, **options):
    """The check of a graph, made anew each time: a recording makes its own only once."""
    return chainrule.Recording.of(graph).verify(**options)


def proved(step):
    return verify(recorded(step))


def rows(verification, name):
    return [row for row in verification.rows if row.node.name == name]


def no_alarm(verification, unchecked=False):
    assert verification.passed, [(row.node.name, row.reason, row.wrong) for row in verification.failures]
    if not unchecked:
        unproved = [row for row in verification.rows if row.verdict == "not checked"]
        assert not unproved, [(row.node.name, row.reason) for row in unproved]


def caught(verification, name):
    """The failure at the only node that fails, which has this name."""
    assert [row.node.name for row in verification.failures] == [name], [
        (row.node.name, row.reason) for row in verification.failures
    ]
    return verification.failures[0]


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class FlippedSign(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return -2 * x * g
