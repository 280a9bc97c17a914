"""All scripts of the bed: each module of faulty or healthy ones enters its own when it is imported."""

from importlib import import_module
from pathlib import Path

from tests.faults.faulty import FAULTS
from tests.faults.healthy import HEALTHY

__all__ = ["FAULTS", "HEALTHY"]

for _each in sorted(Path(__file__).parent.glob("*.py")):
    if _each.stem.startswith(("faulty", "healthy")):
        import_module(f"tests.faults.{_each.stem}")
