"""The `chainrule` command: parse, call, print.

PyTorch takes over a second to import, so each command imports what it needs itself, and help comes at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from chainrule._version import __version__
from chainrule.errors import ChainruleError

if TYPE_CHECKING:
    from chainrule.recording import Recording
    from chainrule.script import ScriptRun

DISAGREES = 1
NOTHING = 2  # also click's status for wrong usage


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


script_argument = click.argument("script", type=click.Path())
script_arguments = click.argument("args", nargs=-1, metavar="[-- ARGS...]")
step_option = click.option(
    "--step",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Which training step: from the end of the optimizer's step N-1 to the end of step N.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write to a file instead of the terminal; its suffix names the view (.html .md .tex .ipynb .svg .json .txt), "
    "and .safetensors keeps the recording.",
)
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
def demo(optimizer: str, logits: bool, train: int, brief: bool, output: str | None) -> None:
    """Work out one step of a small network, number by number.

    \b
    Examples:
      chainrule demo --optimizer sgd
      chainrule demo --logits --train 500 --brief
      chainrule demo --html step.html
    """
    from chainrule.demo import show_demo

    show_demo(optimizer=optimizer, logits=logits, train=train, brief=brief, output=output)


@commands.command(cls=ScriptCommand)
@script_argument
@script_arguments
@step_option
@brief_option
@output_option
@explain_option
@click.option("--stop", is_flag=True, help="End the script right after the step.")
def run(script: str, args: tuple[str, ...], step: int, brief: bool, output: str | None, stop: bool) -> NoReturn:
    """Run SCRIPT as python would, and show its N-th training step.

    The script is not changed, runs on to its end, and its exit status is passed on. The status is 2 if the step never
    came.

    \b
    Examples:
      chainrule run train.py
      chainrule run train.py --step 100 --stop -- --epochs 1
      chainrule run train.py -o step.html
    """
    from chainrule.recording import check_output
    from chainrule.script import run_script

    if output is not None:
        check_output(output)  # the script may run for hours
        output = os.path.abspath(output)  # and change its folder
    outcome = run_script(script, args, step=step, stop=stop)
    _say_shortfall(outcome)
    if outcome.recording is not None and outcome.recording.graph.calls:
        _show(outcome.recording, brief, output)
    sys.exit(outcome.status or (0 if outcome.complete else NOTHING))


@commands.command(cls=ScriptCommand)
@script_argument
@script_arguments
@step_option
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only nodes whose name, module or value matches: 'h.3.*' is a block and all in it. May be repeated.",
)
@click.option(
    "--sample",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Only a random share of the nodes, the same one each time: 0.1 is a tenth.",
)
def verify(script: str, args: tuple[str, ...], step: int, only: tuple[str, ...], sample: float | None) -> NoReturn:
    """Check every gradient of one training step of SCRIPT.

    Each autograd node is compared with our rule and with a finite difference. The script ends right after the step.
    So is every optimizer's update with its formula. The exit status is 1 where something disagrees, and 2 where there
    was nothing to verify, or where something of your own (an autograd.Function, a custom operator, a hook that changed
    a gradient) could not be checked.

    \b
    Examples:
      chainrule verify train.py
      chainrule verify train.py --step 10 -- --epochs 1
      chainrule verify train.py --only 'h.3.*' --sample 0.1
    """
    from rich.console import Console

    from chainrule.script import run_script
    from chainrule.views.terminal import render

    outcome = run_script(script, args, step=step, stop=True)
    _say_shortfall(outcome)
    if outcome.recording is None or not outcome.recording.nodes:
        if outcome.complete:
            _say(
                f"there is nothing to verify in training step {step} of {script}: no operation in it needs a gradient."
            )
        sys.exit(outcome.status or NOTHING)
    verification = outcome.recording.verify(only=only or None, sample=sample)
    render(verification.document(), Console())
    if verification.verdict == "disagrees":
        sys.exit(DISAGREES)
    sys.exit(outcome.status or (0 if outcome.complete and verification.passed else NOTHING))


@commands.command(cls=ScriptCommand)
@script_argument
@script_arguments
@click.option(
    "--every", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="Watch each N-th step."
)
@click.option("--to", type=click.Path(dir_okay=False), metavar="FILE", help="Write what is seen to a file (run.db).")
@click.option(
    "--full-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Record the first watched step and each N-th with all its numbers.",
)
@click.option("--on-finding", is_flag=True, help="Keep a step that shows a new finding with all its numbers.")
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="How many steps there will be, for the progress."
)
@click.option("--plain", is_flag=True, help="Lines instead of the dashboard.")
@explain_option
def watch(
    script: str,
    args: tuple[str, ...],
    every: int,
    to: str | None,
    full_every: int | None,
    on_finding: bool,
    steps: int | None,
    plain: bool,
) -> NoReturn:
    """Run SCRIPT as python would, and watch its whole training.

    Some steps are recorded as they run: loss, learning rates, and the size of every gradient, weight and update. What
    is unhealthy is said while it runs. The script is not changed, and its exit status is passed on.

    \b
    Examples:
      chainrule watch train.py --every 50 --to run.db -- --epochs 1
      chainrule show run.db -o run.html
    """
    from chainrule.monitor.script import watch_script

    options = {"every": every, "to": to, "full_every": full_every, "on_finding": on_finding}
    outcome = watch_script(script, args, options, total=steps, plain=plain)
    for line in outcome.lines():
        _say(line)
    _say(outcome.sentence(script))
    sys.exit(outcome.status)


@commands.command()
@click.argument("file", type=click.Path())
@brief_option
@output_option
@explain_option
def show(file: str, brief: bool, output: str | None) -> None:
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

    if runs.is_run(file) or file.lower().endswith(".db"):
        _show_run(file, output)
        return
    from chainrule.recording import load

    _show(load(file), brief, output)


def _show(recording: Recording, brief: bool, output: str | None) -> None:
    if output is None:
        recording.show(brief=brief)
    else:
        recording.save(output)
        _say(f"the step is written to {output}")


def _show_run(file: str, output: str | None) -> None:
    from chainrule.monitor import runs
    from chainrule.views.terminal import render

    with runs.open(file) as run:
        if output is None:
            render(run.document())
        else:
            run.save(output)
            _say(f"the run is written to {output}")


def _say_shortfall(outcome: ScriptRun) -> None:
    if outcome.shortfall:
        _say(outcome.shortfall)
    for found in outcome.explanations:
        _say(str(found))


def _say(sentence: str) -> None:
    click.echo(f"chainrule: {sentence}", err=True)


def main() -> None:
    """The `chainrule` command."""
    commands(prog_name="chainrule")
