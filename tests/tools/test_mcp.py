"""The MCP server, asked by the SDK's own client in another process."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires
from textwrap import dedent

import anyio
import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters

from chainrule.cli import commands

SCRIPT = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, upstream):
            return 2.01 * ctx.saved_tensors[0] * upstream

    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    X, Y = torch.randn(9, 2), torch.arange(9) % 3
    for step in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(Square.apply(model(X)).softmax(dim=1), Y)
        loss.backward()
        optimizer.step()
    print("this is not the protocol")
"""


@pytest.mark.slow
def test_five_tools_answer_a_client(tmp_path):
    (tmp_path / "train.py").write_text(dedent(SCRIPT))
    (tmp_path / "endless.py").write_text("while True: pass\n")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "chainrule", "mcp"], env=environment)

    async def converse():
        async with Client(parameters) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == [
                "explain_script", "verify_script", "watch_script", "findings", "why",
            ]  # fmt: skip
            assert all(tool.description for tool in tools)

            async def ask(tool, **arguments):
                answer = await client.call_tool(tool, arguments)
                assert not answer.is_error, answer.content
                return answer.structured_content

            async def refuse(tool, **arguments):
                answer = await client.call_tool(tool, arguments)
                assert answer.is_error
                return answer.content[0].text

            script = {"script": "train.py", "folder": str(tmp_path)}
            step = await ask("explain_script", **script, step=2)
            assert step["report"].startswith("# Training step 2 of train.py, in brief")
            assert (step["step"], step["verdict"]) == (2, "disagrees")
            term = (await ask("why", recording=step["recording"], name="weight", index=[0, 1]))["why"]
            assert term.startswith("dJ/dweight[0,1] = dJ/dlinear[0,0] * X[0,1] + ")
            assert "There is no value named 'weigth'" in await refuse("why", recording=step["recording"], name="weigth")

            check = await ask("verify_script", **script)
            assert (check["verdict"], check["status"]) == ("disagrees", 1)
            assert [each["name"] for each in check["nodes"]] == ["SquareBackward"]
            assert "this is not the protocol" not in check["printed"]  # it ended before

            run = await ask("watch_script", **script, every=1)
            kinds = {each["id"] for each in run["findings"]}
            assert "softmax-before-cross-entropy" in kinds
            assert "this is not the protocol" in run["printed"]
            assert {each["id"] for each in (await ask("findings", file=run["file"]))["findings"]} == kinds
            assert "Warning" in (await ask("findings", kind="loss-spike"))["explanation"]

            assert "give either `file` or `kind`" in await refuse("findings")
            assert "cannot open missing.py" in await refuse("verify_script", script="missing.py")
            late = await refuse("verify_script", script="endless.py", folder=str(tmp_path), timeout=2)
            assert "did not come that far in 2 seconds" in late

    with ThreadPoolExecutor(1) as thread:  # the browser of another test keeps an event loop in this one
        thread.submit(anyio.run, converse).result()


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "chainrule.tools.mcp_server", None)
    done = CliRunner().invoke(commands, ["mcp"], prog_name="chainrule")
    assert done.exit_code == 2
    assert "pip install 'chainrule[mcp]'" in done.stderr


def test_the_extra_brings_the_sdk():
    assert any(each.startswith("mcp") and "extra == 'mcp'" in each for each in requires("chainrule") or [])
