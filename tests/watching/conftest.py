"""What the tests of a watch share."""

import pytest
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


@pytest.fixture
def nothing_is_left():
    yield
    assert not optimizer_hooks._global_optimizer_pre_hooks
    assert not optimizer_hooks._global_optimizer_post_hooks
    assert not module_hooks._global_forward_pre_hooks
    assert not module_hooks._global_forward_hooks
