"""The wheel and the sdist: nothing is missing, nothing is in them that does not belong, and their metadata is valid."""

import subprocess
import sys
import tarfile
import zipfile

import pytest

import chainrule
from tests.release.conftest import ROOT

pytestmark = pytest.mark.slow
NOT_SHIPPED = (".ci/", ".github/", ".npmrc")  # how this repository is tested


def test_the_wheel_is_the_package(dist):
    (wheel,) = dist.glob("*.whl")
    source = (path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(ROOT / "src").as_posix() for path in source if not path.name.endswith(".d.ts")}
    info = f"chainrule-{chainrule.__version__}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert set(zipfile.ZipFile(wheel).namelist()) == expected | about


def test_the_sdist_is_the_repository(dist):
    (sdist,) = dist.glob("*.tar.gz")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a git repository")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert found - {"PKG-INFO"} == {name for name in tracked if not name.startswith(NOT_SHIPPED)}


def test_the_metadata_is_valid(dist):
    pytest.importorskip("twine")
    files = [str(path) for path in sorted(dist.iterdir())]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout


def test_every_place_has_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {chainrule.__version__}\n" in citation
    assert f"\n## {chainrule.__version__} (" in changelog
