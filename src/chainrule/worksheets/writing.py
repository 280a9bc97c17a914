"""Writes worksheets: the sheets of all variants into a folder, and what solves and grades them into `solutions`."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chainrule import views
from chainrule.errors import RecordingError, RequestError, StorageError
from chainrule.progress import bar
from chainrule.recording import Recording, load, record
from chainrule.script import run_script
from chainrule.worksheets.networks import Network, Wish, is_sizes, networks, script, sizes_of
from chainrule.worksheets.questions import questions
from chainrule.worksheets.sheets import Sheet, as_latex, as_markdown, as_notebook, otter_tests, solution

SOLUTIONS, OTTER, KEY = "solutions", "otter", "key.json"
FORMAT, VARIANTS = 1, 30


def write(
    network: str, output: Path, *, seed: int | None = None, variants: int | None = None, dead_unit: bool = False,
    kink: bool = False,
) -> list[Sheet]:  # fmt: skip
    """Write the worksheets of a network `2-3-2-1`, or of one step, saved or of a script, to the folder `output`.

    Without a `seed` the numbers are others each time. Raises RequestError for a network that is not to be had,
    RecordingError where the script has no training step, StorageError where the folder holds worksheets already or
    cannot be written.
    """
    if not is_sizes(network) and not Path(network).exists():
        raise RequestError(
            f"--network {network} is neither a network nor a file. Write the sizes of the layers from input to output "
            "as whole numbers with hyphens between them, as in 2-3-2-1, or give the path of a script or a saved step."
        )
    if not is_sizes(network) and (dead_unit or kink or seed is not None or (variants or 1) > 1):
        raise RequestError(
            f"--network {network} is a file, and its numbers are as they are: one variant. Leave --variants, --seed, "
            "--dead-unit and --kink out, or give the sizes of a network, as in 2-3-2-1."
        )
    variants = (variants or VARIANTS) if is_sizes(network) else 1
    output = output.absolute()  # a script may change its folder
    folder = output / SOLUTIONS
    if (folder / KEY).exists():
        raise StorageError(f"{output} holds worksheets already. Give another folder, or delete this one first.")
    seed = secrets.randbelow(2**53) if seed is None else seed
    key = hashlib.sha256(f"{network}/{seed}/{variants}/{dead_unit}/{kink}".encode()).hexdigest()[:8]
    if is_sizes(network):
        chosen = list(networks(Wish(sizes_of(network), dead_unit, kink), seed, variants))
        recorded = _of_networks(chosen, folder)
    else:
        recorded = iter((("01", _of_file(network)),))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sheets = []
        with bar("writing worksheets") as progress:
            for label, recording in recorded:
                sheets.append(_sheet(key, label, recording))
                _write_sheet(sheets[-1], output)
                progress(len(sheets), variants)
        _write_key(sheets, folder, network, seed)
    except OSError as error:
        raise StorageError(f"{output} cannot be written ({error.strerror}). Give another folder with -o.") from error
    return sheets


def _of_networks(chosen: list[Network], folder: Path) -> Iterator[tuple[str, Recording]]:
    """Each variant's label and its recorded step; the script of each is written to the folder."""
    for number, network in enumerate(chosen, 1):
        label = f"{number:0{max(2, len(str(len(chosen))))}d}"
        path = folder / f"variant-{label}.py"
        sizes = [len(network.inputs[0]), *map(len, network.weights)]
        title = f"One step of a {'-'.join(map(str, sizes))} network."
        source = script(network, title)
        path.write_text(source, encoding="utf-8")
        names: dict[str, Any] = {"__name__": path.stem}
        exec(compile(source, str(path), "exec"), names)  # ours, and the file is for those who read the lines
        with record(namespace=names) as recording:
            names["train_step"]()
        yield label, recording


def _of_file(path: str) -> Recording:
    """A saved step, or the first training step of a user's own script, which ends there."""
    if path.lower().endswith(".safetensors"):
        recording: Recording | None = load(path)
        which, shortfall = f"the step in {path}", ""
    else:
        outcome = run_script(path, stop=True)
        recording = outcome.recording if outcome.complete else None
        which, shortfall = f"the first training step of {path}", outcome.shortfall or ""
    if recording is None or recording.loss is None:
        raise RecordingError(shortfall or f"{which} has no loss that is a single number.")
    if recording.verify().verdict == "disagrees":
        raise RecordingError(
            f"a gradient or an update in {which} is wrong, so it is no answer to a question. "
            f"See `chainrule verify {path}`."
        )
    return recording


def _sheet(key: str, label: str, recording: Recording) -> Sheet:
    document = recording.document()
    return Sheet(key, label, secrets.token_hex(8), recording, document, questions(recording, document))


def _write_sheet(sheet: Sheet, output: Path) -> None:
    name = f"variant-{sheet.label}"
    sheet.recording.save(output / SOLUTIONS / f"{name}.safetensors")
    for suffix, written in ((".md", as_markdown), (".tex", as_latex), (".ipynb", as_notebook)):
        (output / f"{name}{suffix}").write_text(written(sheet), encoding="utf-8")
        text = views.written(solution(sheet, coded=suffix == ".ipynb"), suffix)
        (output / SOLUTIONS / f"{name}{suffix}").write_text(text, encoding="utf-8")
    tests = output / OTTER / name
    tests.mkdir(parents=True, exist_ok=True)
    for file, code in otter_tests(sheet).items():
        (tests / file).write_text(code, encoding="utf-8")


def _write_key(sheets: list[Sheet], folder: Path, network: str, seed: int) -> None:
    variants = {sheet.label: [asdict(question) for question in sheet.questions] for sheet in sheets}
    key = {"format": FORMAT, "worksheet": sheets[0].key, "network": network, "seed": seed, "variants": variants}
    (folder / KEY).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
