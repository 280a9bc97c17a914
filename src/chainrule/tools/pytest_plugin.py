"""The pytest plug-in: the fixture `chainrule_step`, and the option `--chainrule-verify`.

pytest loads it wherever chainrule is installed, so PyTorch is only imported where a test uses one of the two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding
    from chainrule.recording import Recording, record
    from chainrule.tools.result import Issue, Level
    from chainrule.verification_result import Verification

SKIP = "chainrule_skip"
ALIKE = 5  # a gradcheck or a training makes hundreds
VERIFIED, LEFT, UNCHECKED = "chainrule verified", "chainrule left out", "chainrule not checked"
"""The properties of a test's report that the summary reads."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option `--chainrule-verify`."""
    parser.getgroup("chainrule").addoption(
        "--chainrule-verify",
        action="store_true",
        help="Verify the gradients of every backward pass in every test; a wrong one fails its test.",
    )
    parser.getgroup("chainrule").addoption(
        "--chainrule-alike",
        type=int,
        default=ALIKE,
        metavar="N",
        help=f"Of the autograd nodes that one line makes again and again, verify the first N of a test ({ALIKE}).",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that `--chainrule-verify` leaves alone."""
    config.addinivalue_line("markers", f"{SKIP}: --chainrule-verify leaves this test alone (it records by itself)")


class RecordedStep:
    """What a test does, recorded from its first line until somebody asks for the recording, or it ends."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {}
        self._session: record | None = None
        self._recording: Recording | None = None
        self._check: Verification | None = None

    @property
    def recording(self) -> Recording:
        """The recording of the test so far; it ends here."""
        from chainrule.capture.lowering.naming import variables_around

        if self._session is not None:
            self._names.update(variables_around(sys._getframe()))
        self._end(None)
        if self._recording is None:
            raise RuntimeError("chainrule_step records the body of a test. Ask for it there, not in a fixture.")
        return self._recording

    def findings(self, level: Level = "note") -> tuple[Finding, ...]:
        """The findings of this level and above: `note`, `warning` or `error`."""
        from chainrule.tools.result import LEVELS

        return tuple(each for each in self.recording.findings() if each.severity in LEVELS[LEVELS.index(level) :])

    def verify(self, **options: Any) -> Verification:
        """Check the gradients of the step, as `recording.verify` does."""
        self._check = self.recording.verify(**options)
        return self._check

    def _begin(self) -> None:
        from chainrule.recording import record

        session = record(namespace=self._names)
        self._recording = session.__enter__()
        self._session = session

    def _end(self, error: BaseException | None) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
            self._names.clear()


@pytest.fixture
def chainrule_step() -> RecordedStep:
    """The test as one recorded training step: `.recording`, `.findings(level)` and `.verify()`, which end it."""
    return RecordedStep()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Record the body of a test that has the fixture, and with the option of each, which is then verified."""
    step: RecordedStep | None = getattr(item, "funcargs", {}).get("chainrule_step")
    verifies = item.config.getoption("chainrule_verify") and item.get_closest_marker(SKIP) is None
    if step is None and not verifies:
        return (yield)
    step = step or RecordedStep()
    step._begin()
    try:
        result = yield
    except BaseException as error:
        step._end(error)
        _show(item, step, error)
        raise
    step._end(None)
    if verifies and (wrong := _verified(item, step)):
        pytest.fail("chainrule: the backward pass of this test is wrong.\n" + _lines(item, wrong), pytrace=False)
    return result


def _show(item: pytest.Item, step: RecordedStep, error: BaseException) -> None:
    """Add to the report of a failure what the test's own `verify` found, or that it records by itself."""
    from chainrule.errors import RecordingError
    from chainrule.tools.result import issues_of_check

    if step._check is not None and not step._check.passed:
        item.add_report_section("call", "chainrule", _lines(item, issues_of_check(step._check)))
    if isinstance(error, RecordingError):
        words = f"This test is being recorded. If it records by itself, mark it: @pytest.mark.{SKIP}."
        item.add_report_section("call", "chainrule", words)


def _verified(item: pytest.Item, step: RecordedStep) -> list[Issue]:
    """What is wrong in a test's backward passes; what could not be checked is noted for the summary."""
    from chainrule.errors import brief
    from chainrule.tools.result import from_root, issues_of_check

    try:
        recording = step.recording
        if not recording.graph.backwards:
            return []
        check = recording.verify(alike=item.config.getoption("chainrule_alike"))
    except Exception as error:  # ours, which must not fail the user's test
        item.user_properties.append((UNCHECKED, brief(error)))
        return []
    proved = sum(row.verdict in ("agrees", "by convention") for row in check.rows)
    item.user_properties += [(VERIFIED, proved), (LEFT, check.left_out)]
    issues = from_root(issues_of_check(check), item.config.rootpath)
    left = [each for each in issues if each.level != "error"]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        item.user_properties.append((UNCHECKED, f"{left[0]}{more}"))
    return [each for each in issues if each.level == "error"]


def _lines(item: pytest.Item, issues: list[Issue]) -> str:
    from chainrule.tools.result import from_root

    found = from_root(issues, item.config.rootpath)
    return "\n".join("\n  ".join([str(each), *filter(None, (*each.evidence, each.advice))]) for each in found)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many gradients were verified, and what could not be checked."""
    if not config.getoption("chainrule_verify"):
        return
    properties = [
        (each.nodeid, name, value)
        for reports in terminalreporter.stats.values()
        for each in reports
        if isinstance(each, pytest.TestReport) and each.when == "call"
        for name, value in each.user_properties
    ]
    counts, left = (
        [value for _, name, value in properties if name == wanted and isinstance(value, int)]
        for wanted in (VERIFIED, LEFT)
    )
    unchecked = [(nodeid, value) for nodeid, name, value in properties if name == UNCHECKED]
    terminalreporter.section("chainrule")
    terminalreporter.line(
        f"{sum(counts):,} autograd nodes verified in {len(counts):,} tests with a backward pass"
        + (f"; {sum(left):,} more of the same lines left out (--chainrule-alike)" if sum(left) else "")
    )
    if unchecked:
        terminalreporter.line(f"{len(unchecked):,} tests with something not checked:")
    for nodeid, words in unchecked:
        terminalreporter.line(f"  {nodeid}: {words}")
