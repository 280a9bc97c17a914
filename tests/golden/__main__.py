"""Writes the golden files whose content has changed: `python -m tests.golden`."""

from tests.golden import FOLDER, STEPS, rendered
from tests.golden.comparison import difference

for step in STEPS:
    for name, text in rendered(step).items():
        path = FOLDER / name
        if not path.exists() or difference(path.read_text(encoding="utf-8"), text):
            path.write_text(text, encoding="utf-8")
            print(f"{name}: written")
