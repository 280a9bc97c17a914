"""The `chainrule` command: parse, call, print.

PyTorch takes over a second to import, so each command imports what it needs itself, and help comes at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from chainrule._version import __version__
from chainrule.errors import ChainruleError
from chainrule.tools.reporter import NOTHING, Reporter, json_option, rank, result_options, say
from chainrule.worksheets.commands import exercise, grade

if TYPE_CHECKING:
    from chainrule.recording import Recording
    from chainrule.script import ScriptRun
    from chainrule.tools.result import Result


class Failure(click.ClickException):
    """A `ChainruleError`, printed as its sentence."""

    exit_code = NOTHING


class Commands(click.Group):
    """A group whose commands may raise `ChainruleError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error raised on purpose is printed without a traceback."""
        try:
            return super().invoke(ctx)
        except ChainruleError as error:
            raise Failure(str(error)) from error


class ScriptCommand(click.Command):
    """A command that takes a script, whose own options come after `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say where an option that is not ours belongs."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"{error.format_message()} Options of the script itself go after --.", ctx
            ) from error


def script_arguments(command: Callable[..., Any], name: str = "script", metavar: str = "SCRIPT") -> Callable[..., Any]:
    """The arguments of a command that runs a script: the script, whether it is a module, and its own arguments."""
    help = "SCRIPT is the name of a module, as for python -m."
    command = click.option("-m", "module", is_flag=True, help=help)(command)
    command = click.argument("args", nargs=-1, metavar="[-- ARGS...]")(command)
    return click.argument(name, metavar=metavar, type=click.Path())(command)


step_option = click.option(
    "--step", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Which training step: from the end of the optimizer's step N-1 to the end of step N.",
)  # fmt: skip
output_option = click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE",
    help="Write to a file instead of the terminal; its suffix names the view (.html .md .tex .ipynb .svg .json .txt), "
    "and .safetensors keeps the recording.",
)  # fmt: skip
brief_option = click.option("--brief", is_flag=True, help="A screenful instead of the whole walk.")


def _explain(ctx: click.Context, _: click.Parameter, id: str | None) -> None:
    if id is not None:
        from chainrule.reference import explanation

        try:
            click.echo(explanation(id))
        except ChainruleError as error:
            raise Failure(str(error)) from error
        ctx.exit()


explain_option = click.option(
    "--explain", metavar="ID", is_eager=True, expose_value=False, callback=_explain,
    help="Explain a kind of finding by its id (loss-spike), and exit.",
)  # fmt: skip


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chainrule")
@explain_option
def commands() -> None:
    """Backpropagation, worked out.

    Records one ordinary PyTorch training step and works out every derivative in it: formula, numbers, and proof.

    \b
    Examples:
      chainrule demo
      chainrule run train.py --step 3 -- --epochs 1
      chainrule verify train.py
    """


@commands.command()
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="adam", show_default=True)
@click.option("--logits", is_flag=True, help="Leave the sigmoid to the loss, as practitioners do.")
@click.option("--train", type=click.IntRange(min=0), default=0, metavar="N", help="Train for N more steps afterwards.")
@brief_option
@click.option("--html", "output", type=click.Path(dir_okay=False), metavar="FILE", help="Write the page to a file.")
@json_option
def demo(optimizer: str, logits: bool, train: int, brief: bool, output: str | None, json: bool) -> None:
    """Work out one step of a small network, number by number.

    \b
    Examples:
      chainrule demo --optimizer sgd
      chainrule demo --logits --train 500 --brief
      chainrule demo --html step.html
    """
    from chainrule.demo import show_demo
    from chainrule.tools.result import Result, of_recording

    reporter = Reporter(json=json)
    recording = show_demo(optimizer=optimizer, logits=logits, train=train, brief=brief, output=output, show=not json)
    if json:
        of_step = partial(Result, "demo", "demo", step=1)
        reporter.give(reporter.accept(of_recording(of_step, recording, recording.document(brief))))


@commands.command(cls=ScriptCommand)
@script_arguments
@step_option
@brief_option
@output_option
@explain_option
@click.option("--stop", is_flag=True, help="End the script right after the step.")
@result_options
def run(
    script: str,
    args: tuple[str, ...],
    module: bool,
    step: int,
    brief: bool,
    output: str | None,
    stop: bool,
    **results: Any,
) -> NoReturn:
    """Run SCRIPT as python would, and show its N-th training step.

    The script is not changed, runs on to its end, and its exit status is passed on. The status is 2 if the step never
    came, and 1 where --fail-on says so.

    \b
    Examples:
      chainrule run train.py
      chainrule run train.py --step 100 --stop -- --epochs 1
      chainrule run -m package.train -o step.html
    """
    from chainrule.recording import check_output
    from chainrule.script import run_script
    from chainrule.tools.result import Result, explained

    if output is not None:
        check_output(output)  # the script may run for hours
        output = os.path.abspath(output)  # and change its folder
    reporter = Reporter(**results)
    outcome = run_script(script, args, step=step, stop=stop, module=module)
    _say_shortfall(outcome)
    status = outcome.status or (NOTHING if outcome.shortfall else 0)
    result = partial(Result, "run", script, step=step, steps=outcome.steps)
    if outcome.recording is not None and outcome.recording.graph.calls:
        sys.exit(_show(outcome.recording, brief, output, reporter, result, status, outcome))
    found = result(summary=outcome.shortfall or "", findings=explained(outcome))
    sys.exit(reporter.finish(reporter.accept(found, whole=False), status))


@commands.command(cls=ScriptCommand)
@script_arguments
@step_option
@click.option(
    "--only", multiple=True, metavar="PATTERN",
    help="Only nodes whose name, module or value matches: 'h.3.*' is a block and all in it. May be repeated.",
)  # fmt: skip
@click.option(
    "--sample", type=click.FloatRange(min=0, max=1, min_open=True), metavar="SHARE",
    help="Only a random share of the nodes, the same one each time: 0.1 is a tenth.",
)  # fmt: skip
@result_options
def verify(
    script: str,
    args: tuple[str, ...],
    module: bool,
    step: int,
    only: tuple[str, ...],
    sample: float | None,
    **results: Any,
) -> NoReturn:
    """Check every gradient of one training step of SCRIPT.

    Each autograd node is compared with our rule and with a finite difference, and every optimizer's update with its
    formula. The script ends right after the step; one that updates nothing is one step. The exit status is 1 where
    something disagrees, and 2 where there was nothing to verify, or where something of your own (an autograd.Function,
    a custom operator, a hook that changed a gradient) could not be checked.

    \b
    Examples:
      chainrule verify train.py
      chainrule verify train.py --step 10 -- --epochs 1
      chainrule verify train.py --only 'h.3.*' --sample 0.1
      chainrule verify -m package.train --sarif results.sarif
    """
    from rich.console import Console

    from chainrule.script import run_script
    from chainrule.tools.result import Result, explained, of_verification
    from chainrule.views.terminal import render

    reporter = Reporter(**results, by_default="error")
    outcome = run_script(script, args, step=step, stop=True, module=module, in_one=True)
    _say_shortfall(outcome)
    if outcome.is_one_step:
        say(f"{script} has no step() of an optimizer: all that it did is verified as one step.")
    result = partial(Result, "verify", script, step=step, steps=outcome.steps)
    if outcome.recording is None or not outcome.recording.nodes:
        nothing = f"there is nothing to verify in training step {step} of {script}"
        summary = outcome.shortfall or f"{nothing}: no operation in it needs a gradient."
        if not outcome.shortfall:
            say(summary)
        found = result(summary=summary, findings=explained(outcome))
        sys.exit(reporter.finish(reporter.accept(found, whole=False), outcome.status or NOTHING))
    alike = None if outcome.steps >= step else 5  # of a whole script, whose loop makes thousands
    check = outcome.recording.verify(only=only or None, sample=sample, alike=alike)
    if not rank() and not reporter.json:
        render(check.document(), Console())
    found = of_verification(result, check, outcome.recording.loss, outcome)
    found = reporter.accept(found, whole=outcome.complete and not check.left_out)
    passed = outcome.complete and (check.passed or (check.proved and found.is_accepted))
    if rank() and not passed:
        say(found.summary)
    sys.exit(reporter.finish(found, outcome.status or (0 if passed else NOTHING)))


@commands.command(cls=ScriptCommand)
@script_arguments
@click.option(
    "--every", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
    help="Watch step 1 and each N-th step.",
)  # fmt: skip
@click.option("--to", type=click.Path(dir_okay=False), metavar="FILE", help="Write what is seen to a file (run.db).")
@click.option(
    "--full-every", type=click.IntRange(min=1), metavar="N",
    help="Record the first watched step and each N-th with all its numbers.",
)  # fmt: skip
@click.option("--on-finding", is_flag=True, help="Keep a step that shows a new finding with all its numbers.")
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="How many steps there will be, for the progress."
)
@click.option("--plain", is_flag=True, help="Lines instead of the dashboard.")
@explain_option
@result_options
def watch(
    script: str,
    args: tuple[str, ...],
    module: bool,
    every: int,
    to: str | None,
    full_every: int | None,
    on_finding: bool,
    steps: int | None,
    plain: bool,
    **results: Any,
) -> NoReturn:
    """Run SCRIPT as python would, and watch its whole training.

    Some steps are recorded as they run: loss, learning rates, and the size of every gradient, weight and update. What
    is unhealthy is said while it runs. The script is not changed, and its exit status is passed on. The status is
    2 if no step was watched, and 1 where --fail-on says so.

    \b
    Examples:
      chainrule watch train.py --every 50 --to run.db -- --epochs 1
      chainrule watch -m package.train --fail-on warning
      chainrule show run.db -o run.html
    """
    from chainrule.monitor.script import watch_script
    from chainrule.tools.result import Result, issues_of

    reporter = Reporter(**results)
    options = {"every": every, "to": to, "full_every": full_every, "on_finding": on_finding}
    outcome = watch_script(script, args, options, total=steps, plain=plain or rank() > 0, module=module)
    for line in outcome.lines():
        say(line)
    if not rank():
        say(outcome.sentence(script))
    result = Result(
        "watch", script, summary=outcome.sentence(script), steps=outcome.steps, watched=outcome.watched,
        file=outcome.kept, findings=issues_of(outcome.findings),
    )  # fmt: skip
    looked = outcome.watched or outcome.findings or rank()
    sys.exit(reporter.finish(reporter.accept(result), outcome.status or (0 if looked else NOTHING)))


@commands.command()
@click.argument("file", type=click.Path())
@brief_option
@output_option
@explain_option
@result_options
def show(file: str, brief: bool, output: str | None, **results: Any) -> NoReturn:
    """Show a step or a whole run from its FILE.

    A step is saved as FILE.safetensors, and a run that is watched as FILE.db.

    \b
    Examples:
      chainrule show step.safetensors --brief
      chainrule show step.safetensors -o step.html
      chainrule show run.db
      chainrule show run.db -o run.html
    """
    from chainrule.monitor import runs
    from chainrule.tools.result import Result

    reporter = Reporter(**results)
    if runs.is_run(file) or file.lower().endswith(".db"):
        sys.exit(_show_run(file, output, reporter))
    from chainrule.recording import load

    sys.exit(_show(load(file), brief, output, reporter, partial(Result, "show", file), 0))


def _show(
    recording: Recording,
    brief: bool,
    output: str | None,
    reporter: Reporter,
    result: Callable[..., Result],
    status: int,
    script: ScriptRun | None = None,
) -> int:
    """Show a step, or write it to a file, and hand out the result; returns the exit status."""
    from chainrule.tools.result import of_recording

    if rank():
        pass  # the first rank shows its own step
    elif output is not None:
        recording.save(output)
        say(f"the step is written to {output}")
    elif not reporter.json:
        recording.show(brief=brief)
    if not reporter.wanted:
        return status
    document = recording.document(brief) if reporter.json else None
    return reporter.finish(reporter.accept(of_recording(result, recording, document, script)), status)


def _show_run(file: str, output: str | None, reporter: Reporter) -> int:
    from chainrule.monitor import runs
    from chainrule.tools.result import Result, head_of, issues_of
    from chainrule.views.terminal import render

    with runs.open(file) as run:
        if output is not None:
            run.save(output)
            say(f"the run is written to {output}")
        elif not reporter.json:
            render(run.document())
        steps, document = run.steps(), run.document()
        result = Result(
            "show", file, steps=steps[-1].step if steps else 0, watched=len(steps), file=file,
            findings=issues_of(run.findings()), document=document, summary=head_of(document),
        )  # fmt: skip
    return reporter.finish(reporter.accept(result), 0)


@commands.command(cls=ScriptCommand)
@partial(script_arguments, name="target", metavar="FILE|SCRIPT")
@step_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="By default any that is free.")
@click.option(
    "--idle", type=click.FloatRange(min=0, min_open=True), default=60, show_default=True, metavar="MINUTES",
    help="End when nothing was asked for so long.",
)  # fmt: skip
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
def lab(target: str, args: tuple[str, ...], module: bool, step: int, port: int, idle: float, opened: bool) -> None:
    """Serve the page of one step, with PyTorch behind its lab: change any number, and everything follows.

    FILE.safetensors is a saved step; a SCRIPT runs up to the end of its N-th training step. The recorded operations
    run again, and the script's own code does not. The page is served on this machine alone, to who has its address.
    Ctrl-C ends it.

    \b
    Examples:
      chainrule lab step.safetensors
      chainrule lab train.py --step 3 -- --epochs 1
    """
    from chainrule.live.server import check_port
    from chainrule.recording import load
    from chainrule.script import run_script

    check_port(port)
    if target.lower().endswith(".safetensors") and not module:
        recording = load(target)
    else:
        outcome = run_script(target, args, step=step, stop=True, module=module)
        _say_shortfall(outcome)
        if outcome.recording is None or not outcome.complete:
            sys.exit(outcome.status or NOTHING)
        recording = outcome.recording
    recording.lab().serve(port, 60 * idle, opened, say)


@commands.command()
def mcp() -> None:
    """Serve five tools to an assistant, by the Model Context Protocol on stdin and stdout.

    The tools explain a step of a script, verify it, watch a training, list findings, and take a gradient apart. The
    scripts that the assistant names are run. It needs `pip install 'chainrule[mcp]'`.

    \b
    Examples:
      chainrule mcp
    """
    try:
        from chainrule.tools.mcp_server import serve
    except ModuleNotFoundError as error:
        raise Failure(f"chainrule mcp needs the package {error.name}: pip install 'chainrule[mcp]'.") from error
    serve()


commands.add_command(exercise)
commands.add_command(grade)


def _say_shortfall(outcome: ScriptRun) -> None:
    if outcome.shortfall:
        say(outcome.shortfall)
    for found in outcome.explanations:
        say(str(found))


def main() -> None:
    """The `chainrule` command."""
    commands(prog_name="chainrule")
