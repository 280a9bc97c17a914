"""The page of a step whose lab has PyTorch behind it: served on loopback, or in a notebook."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from functools import cached_property
from typing import Any

from chainrule import report
from chainrule.derivation.backprop import Derivation
from chainrule.document import Document
from chainrule.errors import RecordingError
from chainrule.graph.graph import Graph
from chainrule.graph.names import Notation
from chainrule.lab.rerun import Rerun
from chainrule.views.page import written


class Lab:
    """The page of a step, and what answers its lab. As the output of a notebook's cell it shows itself.

    Raises NoLabError where the step cannot run again, or comes out otherwise than it was recorded.
    """

    def __init__(
        self, graph: Graph, derivation: Derivation, notation: Notation, document: Callable[[], Document]
    ) -> None:
        context = report.Context(graph, derivation, notation)
        self._rerun = Rerun(graph, notation, report.value_table.row_numbers(context))
        self._document = document

    def page(self, token: str = "") -> str:
        """The page; with a token it asks the server that it came from, without one the notebook around it."""
        lab = {"facts": self.facts()}
        return written(self._document(), lab | {"token": token} if token else lab)

    def facts(self) -> dict[str, Any]:
        """What the page must know before it asks: rows that can be changed, settings, what runs again."""
        return self._rerun.facts()

    def answer(self, asked: Any) -> dict[str, Any]:
        """The answer to what the page asks, or `error`: a sentence."""
        return self._rerun.answer(asked)

    def serve(
        self, port: int = 0, idle: float = 3600.0, opened: bool = False, say: Callable[[str], None] = print
    ) -> None:
        """Serve the page on this machine alone, until Ctrl-C, or until nothing was asked for `idle` seconds.

        Port 0 is any that is free. Raises RequestError where a port is taken.
        """
        from chainrule.live.server import LabServer

        with LabServer(self.page, self.answer, port) as server:
            try:
                say(f"the lab is at {server.address} (Ctrl-C ends it)")
                if opened:
                    webbrowser.open(server.address)
                server.serve_until_idle(idle)
                say(f"the lab has ended: nothing was asked for {idle / 60:g} minutes.")
            except KeyboardInterrupt:
                say("the lab has ended.")

    @cached_property
    def widget(self) -> Any:
        """What shows it in a notebook. Raises RecordingError where anywidget is not installed."""
        try:
            import anywidget  # noqa: F401

            from chainrule.live.widget import LabWidget
        except ModuleNotFoundError as error:
            raise RecordingError(
                f"a lab in a notebook needs the package {error.name}: pip install 'chainrule[lab]'."
            ) from error
        return LabWidget(self.page(), self.answer)

    def _repr_mimebundle_(self, **given: Any) -> Any:
        return self.widget._repr_mimebundle_(**given)
