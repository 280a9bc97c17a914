"""The commands `chainrule exercise` and `chainrule grade`. PyTorch is imported when one runs, so help comes at once."""

from __future__ import annotations

import csv
import json as format_json
import sys
from pathlib import Path

import click

from chainrule.numbers import many
from chainrule.tools.reporter import NOTHING, say


@click.command()
@click.option(
    "--network", default="2-3-2-1", show_default=True, metavar="SIZES|FILE",
    help="The sizes of the layers from input to output, or a saved step, or a script, whose first training step it is.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N",
    help="Draw the same numbers each time. By default they are others each time.",
)  # fmt: skip
@click.option(
    "--variants", type=click.IntRange(1, 999), metavar="N",
    help="How many sheets, each with other numbers. [default: 30]",
)  # fmt: skip
@click.option("--dead-unit", is_flag=True, help="One hidden unit is off for every sample.")
@click.option("--kink", is_flag=True, help="One input of a ReLU is exactly 0.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR",
    help="The folder to write to.",
)  # fmt: skip
def exercise(network: str, seed: int | None, variants: int | None, dead_unit: bool, kink: bool, output: Path) -> None:
    """Write worksheets of one training step to work out by hand, with solutions.

    Each sheet is written as a notebook that checks itself (.ipynb), as .md and as .tex; the solutions are in a folder
    of their own. The numbers are easy: small whole numbers, and gradients with few digits.

    \b
    Examples:
      chainrule exercise -o homework
      chainrule exercise --network 2-2-1 --variants 5 --dead-unit -o quiz
      chainrule exercise --network train.py -o sheet
    """
    from chainrule.worksheets.writing import SOLUTIONS, write

    sheets = write(network, output, seed=seed, variants=variants, dead_unit=dead_unit, kink=kink)
    written = f"{many(len(sheets), 'variant')} with {len(sheets[0].questions)} questions written to {output}"
    say(f"{written}; keep {output / SOLUTIONS} to yourself")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--solutions", type=click.Path(path_type=Path), metavar="DIR",
    help="The solutions that chainrule exercise wrote. By default they are in FOLDER or beside it.",
)  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Print one JSON object, with each answer of each student.")
@click.option(
    "--csv", "form", flag_value="csv", help="Print a table for a spreadsheet, with the points of each answer."
)
def grade(folder: Path, solutions: Path | None, form: str | None) -> None:
    """Grade the filled-in worksheets in FOLDER.

    Each right number is a point, and known mistakes are named. Answers are read from .ipynb, .md, .csv and .json files
    as data: no code of a student is run. The exit status is 2 where there was nothing to grade.

    \b
    Examples:
      chainrule grade submitted
      chainrule grade submitted --solutions homework/solutions --csv
    """
    from chainrule.views.terminal import render
    from chainrule.worksheets.grading import as_json, as_rows, document
    from chainrule.worksheets.grading import grade as graded_in

    grades = graded_in(folder, solutions)
    match form:
        case "json":
            click.echo(format_json.dumps(as_json(grades), indent=1))
        case "csv":
            csv.writer(sys.stdout, lineterminator="\n").writerows(as_rows(grades))
        case _:
            render(document(grades))
    if form:
        for _, sentence in grades.unread:
            say(sentence)
    if not grades.graded:
        say(f"there is nothing to grade in {folder}. Put the filled-in sheets there: .ipynb, .md, .csv or .json.")
        sys.exit(NOTHING)
