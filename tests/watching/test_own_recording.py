"""A training that records a step itself, and is watched."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import chainrule
from chainrule.errors import ChainruleWarning

pytestmark = pytest.mark.trains
SAID = r"was not watched: a `chainrule\.record\(\)` of your own ran in it"


def train(inner: str, **options: int):
    """Its parameters at the end, the watch (None without options), and the step that it records itself."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def loss_of():
        optimizer.zero_grad()
        return model(torch.randn(4, 3)).square().mean()

    with chainrule.watch(model, optimizer, **options) if options else nullcontext() as watch:
        for step in range(8):
            if step != 4:
                loss_of().backward()
                optimizer.step()
                continue
            loss = loss_of() if inner == "from the loss on" else None
            with chainrule.record() as recording:
                for _ in range(2 if inner == "around two steps" else 1):
                    (loss_of() if loss is None else loss + 1).backward()
                    optimizer.step()
    return [each.detach() for each in model.parameters()], watch, recording


@pytest.mark.parametrize(("every", "watched"), [(1, 7), (2, 5)])
@pytest.mark.parametrize("inner", ["whole step", "from the loss on", "around two steps"])
def test_it_goes_before_that_of_the_watch(every, watched, inner):
    with pytest.warns(ChainruleWarning, match=SAID) if every == 1 else nullcontext():
        parameters, watch, recording = train(inner, every=every)
    bare, _, alone = train(inner)
    assert all(map(torch.equal, parameters, bare))
    assert len(recording.graph.nodes) == len(alone.graph.nodes) > 0
    assert watch.watched == watched
    assert not _get_current_function_mode_stack()
    assert not torch._C._len_torch_dispatch_stack()
