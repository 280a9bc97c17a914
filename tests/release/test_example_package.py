"""A plug-in in its own distribution, installed beside the package's wheel in a fresh environment."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
import warnings

warnings.simplefilter("error")
import chainrule
import torch
from torch import nn

assert not any(name.startswith("softclip") for name in sys.modules), "found, though nothing of it was needed"
assert "importlib.metadata" not in sys.modules or "torch" in sys.modules
print(chainrule.__file__)
import softclip

w = nn.Parameter(torch.tensor([1.0, -2.0]))
with chainrule.record() as recording:
    softclip.SoftClip.apply(softclip.softclip(w, 3.0)).sum().backward()
print(repr(recording.verify()))
recording.save("step.csv")
print(open("step.csv").read())


class Limited(nn.Linear):
    def forward(self, x):
        return softclip.softclip(100 * super().forward(x), 0.5)


model = Limited(2, 2)
nn.init.constant_(model.weight, 1.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
callback = chainrule.callbacks.LoopCallback(to="run.db")
callback.on_train_begin(model, optimizer)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    callback.on_step_end()
callback.on_train_end()
run = chainrule.runs.open("run.db")
print(len(run.steps()), [finding.id for finding in run.findings()])
with chainrule.record() as recording:
    softclip.softclip(100 * w, 0.5).sum().backward()
print([finding.id for finding in recording.findings(silence=["softclip-limits-all"])])
print(next(str(each) for each in recording.findings() if each.id == "softclip-limits-all"))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory, dist, example_dist):
    """A fresh environment that has the two wheels, and of what they need the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wheels = [str(path) for each in (dist, example_dist) for path in each.glob("*.whl")]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, *wheels], check=True)
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (Path(where.stdout.strip()) / "beside.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder, python


def test_the_example_adds_a_rule_a_finding_a_view_and_a_callback(environment, tmp_path, monkeypatch):
    folder, python = environment
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run([str(python), "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    where, verified, rest = done.stdout.split("\n", 2)
    assert Path(where).is_relative_to(folder)
    assert "passed" in verified
    assert "4 explained by a rule" in verified
    assert rest.count(",agrees,") >= 3
    assert "\n3 " in rest
    assert rest.count("softclip-limits-all") == 1
    assert "is at its limit everywhere" in rest
    assert "The least of 2 absolute values is 0.5" in rest
