"""Every suffix that the package names writes a file, of a small step and of one with blocks that are alike."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import chainrule
from chainrule.examples import worked_example
from chainrule.views import by_suffix
from tests.browser.transformer import Transformer
from tests.views.pages import data_of


@pytest.fixture(scope="module")
def worked():
    with chainrule.record() as recording:
        worked_example.train_step(*worked_example.build())
    return recording


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    model = Transformer(vocabulary=7, width=8, heads=2, layers=3)
    tokens, targets = torch.randint(7, (1, 4)), torch.randint(7, (4,))
    with chainrule.record() as recording:
        F.cross_entropy(model(tokens).flatten(0, 1), targets).backward()
    return recording


@pytest.mark.parametrize("suffix", by_suffix())
@pytest.mark.parametrize("name", ["worked", "deep"])
def test_it_writes_a_file_that_names_what_is_told(suffix: str, name: str, request, tmp_path: Path) -> None:
    recording = request.getfixturevalue(name)
    recording.save(tmp_path / f"step{suffix}")
    text = (tmp_path / f"step{suffix}").read_text(encoding="utf-8")
    text += json.dumps(data_of(text)) if suffix == ".html" else ""
    assert ("linear2" if name == "worked" else "ln_1") in text.replace("\\_", "_")
    told_once = "h.1 and h.2" in text
    assert told_once == (name == "deep" and suffix != ".svg")


def test_a_view_states_its_suffix_and_what_it_needs() -> None:
    stated = {suffix: (view.pointing, view.coded) for suffix, view in by_suffix().items()}
    assert stated == {
        ".html": (True, False), ".json": (True, False), ".ipynb": (False, True),
        ".md": (False, False), ".svg": (False, False), ".tex": (False, False), ".txt": (False, False),
    }  # fmt: skip


def test_finding_the_views_needs_no_torch() -> None:
    code = "import sys; from chainrule.views import by_suffix; by_suffix(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
