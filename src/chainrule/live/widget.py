"""The lab in a notebook: the page in a sandboxed frame, whose questions the kernel answers. It needs `anywidget`."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from chainrule.lab.rerun import Answer

# The frame's script runs, but cannot reach the notebook around it: it can only ask by messages.
MODULE = """
function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  frame.title = "The lab of a training step";
  frame.srcdoc = model.get("page");
  frame.style = "width: 100%; height: min(85vh, 900px); min-height: 480px; border: 1px solid #8884; border-radius: 6px";
  const view = Math.random();  // a widget may be shown twice, and each frame counts its questions from 1
  const show = (answered) => frame.contentWindow?.postMessage({ chainrule: answered }, "*");
  const asked = (event) => {
    const question = event.data?.chainrule;
    if (event.source !== frame.contentWindow || !question) return;
    try {
      model.send({ ...question, view });
    } catch {
      const error = "The kernel of this lab is gone: run its cell again.";
      show({ id: question.id, answer: { error } });
    }
  };
  const answered = (answer) => {
    if (answer.view === view) show(answer);
  };
  window.addEventListener("message", asked);
  model.on("msg:custom", answered);
  el.append(frame);
  return () => {
    window.removeEventListener("message", asked);
    model.off("msg:custom", answered);
  };
}
export default { render };
"""


class LabWidget(anywidget.AnyWidget):
    """A lab as the output of a cell."""

    _esm = MODULE
    page = traitlets.Unicode().tag(sync=True)

    def __init__(self, page: str, answer: Answer) -> None:
        super().__init__(page=page)
        self._answer = answer
        self.on_msg(self._asked)

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and isinstance(content.get("id"), int):
            answer = self._answer(content.get("question"))
            self.send({"id": content["id"], "view": content.get("view"), "answer": answer})

    def __repr__(self) -> str:
        return "The lab of a training step. Run the cell to use it."
