"""`%load_ext chainrule`, and then `%%chainrule` at the head of a cell records what the cell runs.

The cell runs as usual, in the user's variables. The recording is shown below it, and assigned to the variable that the
magic's line names (`%%chainrule step`), by default `recording`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chainrule.errors import RecordingError

if TYPE_CHECKING:
    from chainrule.recording import Recording

DEFAULT = "recording"


def register(shell: Any) -> None:
    """Give an IPython shell the cell magic."""

    def chainrule(line: str, cell: str) -> Recording:
        """Record the cell as one training step: `%%chainrule`, or `%%chainrule name` to name the recording."""
        return run_cell(shell, line, cell)

    shell.register_magic_function(chainrule, "cell", "chainrule")


def run_cell(shell: Any, line: str, cell: str) -> Recording:
    """Run a cell in the shell's variables, recorded. An exception passes through; what ran up to it is recorded.

    Raises RecordingError where the line is no name for a variable.
    """
    from chainrule.recording import record  # here, because it imports torch, and loading the extension should not

    name = line.strip() or DEFAULT
    if not name.isidentifier():
        raise RecordingError(
            f"%%chainrule: {name!r} is no name for a variable. Write `%%chainrule step`, or `%%chainrule`."
        )
    source = shell.transform_cell(cell)
    # The source lines, and so the names of values, are found by the file name that the shell gives the cell.
    file = shell.compile.cache(source, shell.execution_count, raw_code=cell)
    code = compile(source, file, "exec")
    with record(namespace=shell.user_ns) as recording:
        shell.user_ns[name] = recording
        exec(code, shell.user_ns)
    return recording
