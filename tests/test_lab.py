"""The lab that has PyTorch behind it: what it answers is what PyTorch gives, and what it refuses."""

from __future__ import annotations

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule
from chainrule.errors import ChainruleError, NoLabError, RequestError
from chainrule.examples import worked_example
from chainrule.live.server import HOST, LARGEST, TOKEN, LabServer
from tests.browser.lab_steps import STEPS
from tests.browser.test_lab_in_a_browser import ALL, EACH, changed


class Asked:
    """The lab of a recording, as its page sees it."""

    def __init__(self, recording: chainrule.Recording) -> None:
        self.lab = recording.lab()
        self.facts = self.lab.facts()
        self.inputs, self.gradients = self.facts["inputs"], self.facts["gradients"]
        self._recording = recording

    def shaped(self, *shape: int) -> int:
        """The one input of this shape."""
        rows = self._recording.document().rows
        [row] = [row for row in self.inputs if rows[row].value.shape == shape]
        return int(row)

    def question(self, **more: Any) -> dict[str, Any]:
        settings = [value for _, value in self.facts["settings"]]
        return {"base": 0, "changes": [], "settings": settings, "places": [], "chosen": None, "step": False, **more}

    def answer(self, **more: Any) -> dict[str, Any]:
        return self.lab.answer(self.question(**more))


def is_near(answered: list[Any], expected: list[Any]) -> bool:
    one, other = (
        torch.tensor([float(each) for each in listed], dtype=torch.float64) for listed in (answered, expected)
    )
    scale = max(1e-4, float(other.abs().nan_to_num(0, 0, 0).max()))
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


@pytest.mark.parametrize("name", EACH)
def test_what_follows_a_change_is_what_pytorch_gives(name: str) -> None:
    torch.manual_seed(0)
    trained = ALL[name]()
    asked = Asked(trained.record())
    generator = random.Random(2)
    for _ in range(2 if name == "mlp" else 5):
        change = changed(trained, asked.inputs, generator)
        answer = asked.answer(changes=[[change["row"], change["place"], change["number"]]])
        for kind in ("values", "gradients", "after"):
            answered = dict(answer[kind])
            assert answered
            for row, expected in change[kind].items():  # of a large row the first numbers
                assert row not in answered or len(answered[row]) == (8 if len(expected) > 64 else len(expected))
                assert row not in answered or is_near(answered[row], expected[: len(answered[row])]), (kind, row)


def test_an_element_is_explained_and_measured() -> None:
    torch.manual_seed(0)
    asked = Asked(STEPS["mlp"]().record())
    row = next(each for each in asked.inputs if each in asked.gradients)
    chosen = asked.answer(changes=[[row, 0, 0.5]], chosen=[row, 1])["chosen"]
    below, low, _, high, _ = chosen["losses"]
    assert chosen["precise"] == "float64"
    assert (high - low) / (2 * chosen["step"]) == pytest.approx(chosen["slope"], rel=1e-4, abs=1e-9)
    assert sum(each["value"] for each in chosen["terms"]) == pytest.approx(chosen["gradient"], rel=1e-4, abs=1e-7)
    assert below != high or chosen["slope"] == 0


def test_steps_are_those_of_the_optimizer() -> None:
    for make in (torch.optim.NAdam, torch.optim.RAdam, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1)):
        torch.manual_seed(0)
        model, x = nn.Linear(3, 2), torch.randn(4, 3)
        optimizer = make(model.parameters())

        def step() -> None:
            optimizer.zero_grad()  # noqa: B023
            model(x).pow(2).sum().backward()  # noqa: B023
            optimizer.step()  # noqa: B023

        with chainrule.record() as recording:
            step()
        asked = Asked(recording)
        base = 0
        for _ in range(8):  # RAdam's steps are others from the sixth on
            base = asked.answer(base=base, step=True)["base"]
        for _ in range(7):
            step()
        answer = asked.answer(base=base)
        weight = dict(answer["values"])[asked.shaped(2, 3)]
        assert is_near(weight, model.weight.detach().flatten().tolist())


class Queue(nn.Module):
    """Compares its input with a queue of earlier ones, of which it writes a row, and with their running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        for name, start in (("mean", torch.zeros(3)), ("queue", torch.ones(4, 3)), ("count", torch.tensor(1.0))):
            self.register_buffer(name, start)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.norm(self.head(x)).tanh())
        out = (y - self.mean) @ self.queue.clone().T
        with torch.no_grad():
            self.mean.mul_(1 - 1 / (self.count + 1)).add_(y.mean(0) / (self.count + 1))
            self.count += 1
            self.queue[1] = y[0]
            self.queue[2:].lerp_(y[1:3], 0.3)
        return out


def test_steps_carry_the_buffers_that_the_forward_pass_writes() -> None:
    torch.manual_seed(0)
    model, x = Queue(), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    with chainrule.record() as recording:
        step()
    asked, base = Asked(recording), 0
    for _ in range(4):
        answer = asked.answer(base=base, step=True)
        assert answer["loss"] == pytest.approx(step().item(), rel=1e-4)
        base = answer["base"]


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


def test_a_step_that_has_no_program_has_this_lab_and_says_what_python_read() -> None:
    model, x = nn.Linear(2, 1), torch.tensor([[0.1, 0.2]])
    with chainrule.record() as recording:
        scale = 2.0 if x.mean() > 0 else 1.0
        (Twice.apply(model(x)) * scale).sum().backward()
    assert recording.document(running=True).program is None
    asked = Asked(recording)
    [row] = [row for row in asked.inputs if row not in asked.gradients]
    assert "Your Python code does not run again" in asked.facts["said"][0]
    assert asked.answer(changes=[[row, 0, 0.3]])["note"] == ""
    note = asked.answer(changes=[[row, 0, -0.9]])["note"]
    assert "test_lab.py:" in note
    assert "was 1 and is 0 with these numbers" in note


def test_why_a_step_cannot_run_again() -> None:
    model, x = nn.Linear(2, 1), torch.randn(3, 2)
    with chainrule.record() as recording:
        hidden = model(x)
        hidden.register_hook(lambda g: g * 3)
        hidden.sum().backward()
    with pytest.raises(NoLabError, match="A hook changed it"):
        recording.lab()
    with chainrule.record(keep="statistics") as recording:
        big = nn.Linear(200, 100)
        big(torch.randn(2, 200)).sum().backward()
    with pytest.raises(NoLabError, match="numbers were kept"):
        recording.lab()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record() as recording:
        model(x).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
    assert "another gradient" in Asked(recording).facts["without"]


def test_a_label_that_is_none_is_refused_in_a_sentence() -> None:
    model = nn.Linear(2, 3)
    with chainrule.record() as recording:
        F.cross_entropy(model(torch.randn(4, 2)), torch.tensor([0, 1, 2, 0])).backward()
    asked = Asked(recording)
    row = asked.shaped(4)
    assert "does not run again" in asked.answer(changes=[[row, 0, 7]])["error"]
    assert "error" not in asked.answer(changes=[[row, 0, 2]])


WRONG: list[Any] = [
    None, [], "x", {}, {"base": 0}, {"base": True}, {"base": 7}, {"base": "0"}, {"changes": [[99, 0, 1.0]]},
    {"changes": [[0, -1, 1.0]]}, {"changes": [[0, 10**9, 1.0]]}, {"changes": [[0, 0, "1"]]}, {"changes": {}},
    {"changes": [[0, 0, 1.0]] * 5000}, {"settings": []}, {"settings": ["x"]}, {"places": [[0, ["x"]]]},
    {"places": [[0, [0] * 5000]]}, {"chosen": [0]}, {"chosen": [99, 0]}, {"step": 1}, {"more": 1},
    {"changes": [[0, 0, 10**400]]},
]  # fmt: skip


def worked() -> chainrule.Recording:
    model, loss, optimizer = worked_example.build()
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording


def test_a_wrong_question_is_refused_in_a_sentence() -> None:
    lab = Asked(worked())
    for wrong in WRONG:
        asked = lab.question(**wrong) if isinstance(wrong, dict) and wrong not in ({}, {"base": 0}) else wrong
        answer = lab.lab.answer(asked)
        assert set(answer) == {"error"}, wrong
        assert answer["error"].endswith(".")


# -- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def served(idle: float = 60.0) -> Iterator[LabServer]:
    with LabServer(lambda token: f"page {token}", lambda asked: {"asked": asked}) as server:
        thread = threading.Thread(target=server.serve_until_idle, args=(idle,))
        thread.start()
        yield server
        server.last = -1e9
        thread.join(10)
        assert not thread.is_alive()


def ask(server: LabServer, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    text = response.read().decode()
    found = response.status, text, dict(response.getheaders())
    connection.close()
    return found


def test_the_server_answers_its_own_page_alone() -> None:
    with served() as server:
        good = {TOKEN.replace("-", "_"): server.token, "Content_Type": "application/json"}
        assert ask(server, "GET", f"/?token={server.token}")[:2] == (200, f"page {server.token}")
        status, text, headers = ask(server, "POST", "/ask", b'{"base": 0}', **good)
        assert (status, json.loads(text)) == (200, {"asked": {"base": 0}})
        assert not any(name.lower().startswith("access-control") for name in headers)
        refused = [
            ask(server, "GET", "/"),
            ask(server, "GET", "/?token=x"),
            ask(server, "GET", f"/etc/passwd?token={server.token}"),
            ask(server, "GET", f"/?token={server.token}", Host="evil.example"),
            ask(server, "POST", "/ask", b"{}", Content_Type="application/json"),
            ask(server, "POST", "/ask", b"{}", **{**good, "X_Chainrule_Token": "é"}),
            ask(server, "POST", "/ask", b"{}", **good, Origin="http://evil.example"),
            ask(server, "POST", "/ask", b"{}", **good, Origin="null"),
            ask(server, "POST", "/ask", b"{}", **{**good, "Content_Type": "text/plain"}),
            ask(server, "POST", "/ask", b"{", **good),
            ask(server, "POST", "/ask", b"[" * 100_000, **good),
            ask(server, "POST", "/ask", b"", **{**good, "Content_Length": str(LARGEST + 1)}),
            ask(server, "POST", "/ask", b"", **{**good, "Content_Length": "-1"}),
            ask(server, "POST", "/other", b"{}", **good),
        ]
        assert all(status in (400, 403, 404, 413) for status, _, _ in refused), refused
        assert all(json.loads(text)["error"].endswith(".") for _, text, _ in refused)
        assert not any(server.token in text for _, text, _ in refused)
        with pytest.raises(RequestError, match="cannot be used"):
            LabServer(lambda _: "", lambda _: {}, server.server_address[1])
        with LabServer(lambda _: "", lambda _: {}) as another:
            assert another.server_address[1] != server.server_address[1]


def test_an_idle_server_ends() -> None:
    with LabServer(lambda _: "", lambda _: {}) as server:
        server.serve_until_idle(0.1)


@pytest.mark.slow
def test_the_command_ends_with_ctrl_c(tmp_path: Path) -> None:
    worked().save(tmp_path / "step.safetensors")
    line = [sys.executable, "-m", "chainrule", "lab", str(tmp_path / "step.safetensors")]
    # A shell starts what is in the background with Ctrl-C ignored.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=heeds) as process:
        assert process.stderr is not None
        assert "the lab is at http://127.0.0.1:" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
        assert process.stderr.read() == "chainrule: the lab has ended.\n"


def test_a_notebook_without_anywidget_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ChainruleError, match=r"pip install 'chainrule\[lab\]'"):
        worked().lab().widget  # noqa: B018
