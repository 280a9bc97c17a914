"""A baseline: a file of findings that are accepted, so that only new ones fail a build.

An entry is the kind, the place by its file and the text of its line, and the parameter, module or node: it holds where
lines above come and go. More of the same, or one of a higher level, is not accepted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path

from chainrule.errors import StorageError
from chainrule.tools.result import LEVELS, Accepted, Issue, plain

FORMAT, VERSION = "chainrule baseline", 1
Key = tuple[str, str, str, str]


def read(path: str | os.PathLike[str]) -> tuple[Accepted, ...]:
    """The entries of a baseline. Raises StorageError where there is no such file, or it is none."""
    hint = "Give a file that --write-baseline wrote."
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path}: there is no such file. {hint}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}. {hint}") from error
    except ValueError as error:
        raise StorageError(f"{path} is not a baseline: it is not JSON ({error}). {hint}") from None
    if not isinstance(whole, dict) or whole.get("format") != FORMAT or whole.get("version") != VERSION:
        raise StorageError(f'{path} is not a baseline: it has no "format": "{FORMAT}", "version": {VERSION}. {hint}')
    try:
        return tuple(_entry(each) for each in whole["accepted"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} is not a baseline: an entry of `accepted` is malformed ({error}). {hint}") from None


def _entry(item: dict[str, object]) -> Accepted:
    entry = Accepted(**item)  # type: ignore[arg-type]
    words = (entry.id, entry.level, entry.where, entry.file, entry.code)
    if not all(isinstance(each, str) for each in words) or entry.level not in LEVELS or type(entry.count) is not int:
        raise ValueError(", ".join(each.name for each in fields(Accepted)))
    return entry


def written(entries: Iterable[Accepted]) -> str:
    """The text of a baseline, an entry a line, sorted: a change is a small diff."""
    lines = sorted(json.dumps(plain(each), ensure_ascii=False) for each in entries)
    listed = ",\n  ".join(lines)
    body = f"[\n  {listed}\n]" if lines else "[]"
    return f'{{"format": "{FORMAT}", "version": {VERSION}, "accepted": {body}}}\n'


def entries_of(issues: Iterable[Issue]) -> tuple[Accepted, ...]:
    """The entries that accept these issues."""
    found: dict[Key, Accepted] = {}
    for each in issues:
        key = _key(each)
        known = found.get(key)
        if known is None:
            found[key] = Accepted(each.id, each.level, each.where, _key(each)[2], each.code)
        else:
            found[key] = replace(known, count=known.count + 1, level=max(known.level, each.level, key=LEVELS.index))
    return tuple(found.values())


def applied(issues: Iterable[Issue], entries: Collection[Accepted]) -> tuple[tuple[Issue, ...], tuple[Accepted, ...]]:
    """The issues, marked where they are accepted, and the entries that were not found, or not as often."""
    left = Counter({_key(each): each.count for each in entries})
    level = {_key(each): LEVELS.index(each.level) for each in entries}
    marked = []
    for each in issues:
        key = _key(each)
        accepted = left[key] > 0 and LEVELS.index(each.level) <= level[key]
        left[key] -= 1
        marked.append(replace(each, accepted=accepted))
    return tuple(marked), tuple(replace(each, count=left[_key(each)]) for each in entries if left[_key(each)] > 0)


def _key(item: Issue | Accepted) -> Key:
    """A file outside of the folder in which the command runs counts by its name: it lies elsewhere on each machine."""
    return item.id, item.where, os.path.basename(item.file) if os.path.isabs(item.file) else item.file, item.code
