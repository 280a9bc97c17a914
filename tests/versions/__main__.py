"""Runs a part of the suite with other versions of Python, PyTorch and the dependencies, and prints a table.

    python -m tests.versions                           every environment of ENVIRONMENTS
    python -m tests.versions 3.13/2.13.0 lowest        some of them
    python -m tests.versions --use /venv/bin/python    an environment that is there already

Each environment is made in a temporary folder, by itself, and removed afterwards: PyTorch with CUDA takes 7 GB.
`lowest` has each dependency in the lowest version that pyproject.toml declares. What cannot be had is a row with the
reason.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FLOORS = dict(re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in PROJECT["dependencies"])  # type: ignore[union-attr]
ENVIRONMENTS = ("lowest", "3.11/2.13.0", "3.12/2.13.0", "3.13/2.13.0", "3.11/2.14.1", "3.13/2.15.0")
PART = [
    "tests/test_pytorch_internals.py", "tests/test_recording.py", "tests/test_verify.py", "tests/test_keeping.py",
    "tests/test_borrowed.py", "tests/test_storage.py", "tests/test_measures.py", "tests/test_cli.py",
    "tests/rules/test_own_operators.py", "tests/watching/test_rounds.py", "tests/test_user_functions.py",
]  # fmt: skip
NEEDS = [
    "pytest>=8",
    "hypothesis>=6",
    "expecttest",
    "transformers>=5",
    "scikit-learn>=1.6",
    "pandas>=2",
    "markdown-it-py",
]


@dataclass
class Row:
    """What came of one environment."""

    python: str
    torch: str
    others: str
    result: str
    minutes: float

    def __str__(self) -> str:
        return f"| {self.python} | {self.torch} | {self.others} | {self.result} | {self.minutes:.1f} |"


def interpreter(version: str) -> str:
    """An interpreter of this version, on the path or of pyenv."""
    candidates = [
        shutil.which(f"python{version}"),
        *map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/python")),
    ]
    for each in filter(None, candidates):
        if subprocess.run([each, "-c", ""], capture_output=True).returncode == 0:
            return str(each)
    raise LookupError(f"there is no Python {version} here")


def made(name: str, folder: Path) -> str:
    """The interpreter of a new environment. Raises LookupError with the reason where it cannot be made."""
    lowest = name == "lowest"
    version, torch = (PROJECT["requires-python"].removeprefix(">="), FLOORS["torch"]) if lowest else name.split("/")
    subprocess.run([interpreter(version), "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pinned = [f"{each}=={floor}" for each, floor in FLOORS.items()] if lowest else [f"torch=={torch}"]
    for packages in (pinned, [*pinned, *[r for r in PROJECT["dependencies"] if not r.startswith("torch")], *NEEDS]):
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", "--no-cache-dir", *packages], capture_output=True, text=True
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise LookupError(errors[-1] if errors else done.stderr[-200:])
    return python


def tried(python: str, others: str) -> Row:
    """Run the part of the suite with an interpreter."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ask = "import platform, torch; print(platform.python_version(), torch.__version__)"
    version, torch = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    command = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *PART]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print(f"  {version} {torch}: {line}", file=sys.stderr)
    summary = re.sub(r" in [\d.]+s.*", "", lines[-1]) if lines else ""
    result = summary if "passed" in summary else f"ended with {done.returncode}: {(summary or done.stderr)[-200:]}"
    return Row(version, torch, others, result.strip("= "), (time.monotonic() - begun) / 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", help=f"PYTHON/TORCH or lowest; default: {' '.join(ENVIRONMENTS)}")
    parser.add_argument("--use", action="append", default=[], help="the interpreter of an environment that is there")
    options = parser.parse_args()
    print("| Python | PyTorch | Other packages | Result | Minutes |\n|---|---|---|---|---|", flush=True)
    for python in options.use:
        print(tried(python, "as installed"), flush=True)
    for name in options.environments or ([] if options.use else ENVIRONMENTS):
        with tempfile.TemporaryDirectory(prefix="chainrule-") as folder:
            try:
                row = tried(made(name, Path(folder)), "lowest declared" if name == "lowest" else "latest")
            except LookupError as error:
                row = Row(*(name.split("/") if "/" in name else ("", "")), "", f"not to be had: {error}", 0.0)
            print(row, flush=True)


if __name__ == "__main__":
    main()
