"""`chainrule mcp`: five tools for an assistant that speaks the Model Context Protocol, on its official SDK, over stdio.

A script runs in a process of its own, by the same commands as in a terminal: what it prints, its crash and its memory
are not the server's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from chainrule._version import __version__
from chainrule.errors import ChainruleError

INSTRUCTIONS = """chainrule records one ordinary training step of an unmodified PyTorch script, derives and checks every
gradient in it, and watches whole trainings. Begin with `watch_script` where a training goes wrong and nobody knows why,
with `verify_script` where a gradient may be wrong, and with `explain_script` to see one step; `why` then takes single
numbers of the recording apart. The scripts that you name are run, with the rights of this server."""
TAIL = 4000  # characters of what a script printed that are handed on
FILES = count(1)


def server() -> MCPServer:
    """The server with its five tools; its recordings are files of a folder that lives as long as it does."""
    made = MCPServer("chainrule", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    folder = tempfile.TemporaryDirectory(prefix="chainrule-")
    tools = Tools(folder)
    for tool in (tools.explain_script, tools.verify_script, tools.watch_script, tools.findings, tools.why):
        made.add_tool(tool)
    return made


def serve() -> None:
    """Serve on stdin and stdout until stdin ends."""
    server().run("stdio")


class Tools:
    """The tools; a script is a path, or with `module` the name of a module, as for `python -m`.

    `folder` is where it runs, `arguments` are its own, and it is ended after `timeout` seconds.
    """

    def __init__(self, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._folder = folder

    def _file(self, name: str) -> Path:
        return Path(self._folder.name) / name.format(next(FILES))

    async def explain_script(
        self,
        script: str,
        arguments: Sequence[str] = (),
        step: int = 1,
        module: bool = False,
        folder: str = ".",
        timeout: float = 600,
    ) -> dict[str, Any]:
        """Run a training script up to the end of one training step, record that step and explain it.

        Gives the loss, the verdict on its gradients, its findings, a report in Markdown, and the file of the recording
        (`recording`), which `why` and `findings` take.
        """
        file = self._file("step-{}.safetensors")
        options = ("--step", str(step), "--stop", "--brief", "-o", str(file), *_module(module))
        result = await _command("run", script, arguments, options, folder, timeout)
        result["report"] = _markdown(result.pop("document"))
        return result | {"recording": str(file) if file.exists() else None}

    async def verify_script(
        self,
        script: str,
        arguments: Sequence[str] = (),
        step: int = 1,
        only: Sequence[str] = (),
        module: bool = False,
        folder: str = ".",
        timeout: float = 600,
    ) -> dict[str, Any]:
        """Check every gradient of one training step of a script against independent rules and finite differences.

        `verdict` is `agrees`, `disagrees`, or `not checked` where something was not; `findings` name what is wrong,
        with file, line and numbers. `only` limits it to nodes, modules or values by patterns such as `h.3.*`. Of the
        nodes only those that do not agree are listed.
        """
        options = ["--step", str(step), *_module(module), *(part for each in only for part in ("--only", each))]
        result = await _command("verify", script, arguments, options, folder, timeout)
        nodes = result["nodes"]
        result["nodes"] = [each for each in nodes if each["verdict"] != "agrees"]
        return result | {"nodes_checked": len(nodes)}

    async def watch_script(
        self,
        script: str,
        arguments: Sequence[str] = (),
        every: int = 10,
        module: bool = False,
        folder: str = ".",
        timeout: float = 600,
    ) -> dict[str, Any]:
        """Run a whole training and watch each `every`-th step: what is unhealthy, since which step, and its cause.

        `file` is the file of the run, which `findings` takes. `every=1` sees most, and suits a few hundred steps. A
        training that is ended by `timeout` gives what was found until then.
        """
        file = self._file("run-{}.db")
        options = ("--every", str(every), "--plain", "--to", str(file), *_module(module))
        try:
            return await _command("watch", script, arguments, options, folder, timeout)
        except TimeoutError:
            if not file.exists():
                raise ToolError(f"{script} made no step in {timeout:g} seconds. Give a longer timeout.") from None
            result = await self.findings(str(file))
            return result | {"file": str(file), "ended": f"by the timeout of {timeout:g} seconds"}

    async def findings(self, file: str = "", kind: str = "") -> dict[str, Any]:
        """The findings of a recorded step (.safetensors) or of a run (.db), or what one kind of finding means.

        Give `file`, a file that another tool gave, or `kind`, the id of a finding such as `loss-spike`.
        """
        if bool(file) == bool(kind):
            raise ToolError("findings: give either `file` or `kind`.")
        if kind:
            done = await _process(("--explain", kind), ".", 600)
            if done.returncode:
                raise ToolError(_words(done.stderr))
            return {"kind": kind, "explanation": _words(done.stdout)}
        result = await _command("show", file, (), ("--brief",), ".", 600)
        result["report"] = _markdown(result.pop("document"))
        return result

    async def why(self, recording: str, name: str, index: Sequence[int] = ()) -> dict[str, Any]:
        """Why one number of a gradient has its value: the sum behind it, term by term, and the cause of each zero.

        `recording` is the file that `explain_script` gave; `name` a parameter (`fc1.weight`) or variable, `index` the
        element, one number an axis.
        """
        return {"why": await _here(partial(_why, recording, name, tuple(index)))}


def _module(module: bool) -> tuple[str, ...]:
    return ("-m",) if module else ()


async def _command(
    command: str, target: str, arguments: Sequence[str], options: Sequence[str], folder: str, timeout: float
) -> dict[str, Any]:
    """The result of a command, run in a process of its own. Raises TimeoutError, and ToolError with its words."""
    own = ("--", *arguments) if arguments else ()
    try:
        done = await _process((command, *options, "--json", target, *own), folder, timeout)
    except TimeoutError:
        if command == "watch":
            raise
        raise ToolError(f"{target} did not come that far in {timeout:g} seconds. Give a longer timeout.") from None
    if not done.stdout.strip():
        raise ToolError(_words(done.stderr) or f"chainrule {command} ended with status {done.returncode}.")
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"printed": _words(done.stderr)}


async def _process(arguments: Sequence[str], folder: str, timeout: float) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "chainrule", *arguments]
    try:
        with anyio.fail_after(timeout):
            return await anyio.run_process(line, check=False, cwd=folder, stdin=subprocess.DEVNULL)
    except TimeoutError:  # also an OSError
        raise
    except OSError as error:
        raise ToolError(f"{folder}: {error.strerror}. Give a folder in which the script can run.") from error


def _words(printed: bytes) -> str:
    return printed.decode(errors="replace")[-TAIL:].strip()


def _markdown(document: Any) -> str:
    from chainrule.views import markdown
    from chainrule.views.json import FORMAT, VERSION, from_json

    if document is None:
        return ""
    return markdown.written(from_json(json.dumps({"format": FORMAT, "version": VERSION, "document": document})))


async def _here(work: Any) -> str:
    """Run in a thread of the server; an error on purpose is the tool's."""
    try:
        return str(await anyio.to_thread.run_sync(work))
    except ChainruleError as error:
        raise ToolError(str(error)) from error


def _why(recording: str, name: str, index: tuple[int, ...]) -> str:
    from chainrule.recording import load

    return str(load(recording).why(name, index))
