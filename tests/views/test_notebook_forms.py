"""What a notebook shows of the results of a recording's verbs, from a real kernel."""

import re
from xml.etree import ElementTree

import nbclient
import nbformat
import pytest
import torch

from chainrule import record

SETUP = """
import chainrule
from chainrule.examples import worked_example
with chainrule.record(namespace=vars(worked_example)) as recording:
    worked_example.train_step(*worked_example.build("sgd"))
"""
VERBS = ("recording.why('linear2.weight', (0, 1))", "recording.findings()", "recording.verify()", "recording['Z1']")


@pytest.fixture(scope="module")
def outputs():
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, "recording.show()", *VERBS)]
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(book, timeout=300).execute()
    return {cell.source: cell.outputs for cell in book.cells}


@pytest.mark.slow
def test_show_is_one_output(outputs):
    assert len(outputs["recording.show()"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_form_in_html_and_one_in_latex(outputs, verb):
    [output] = outputs[verb]
    html, latex = output.data["text/html"], output.data["text/latex"]
    ElementTree.fromstring(html)  # each element that is opened is closed
    assert "<script" not in html
    assert latex.count("{") == latex.count("}")
    numbers = {"why": "-0.5747", "findings": "-7.8", "verify": "15 of 16", "['Z1']": "-0.0600"}
    known = next(number for name, number in numbers.items() if name in verb)
    assert known in re.sub(r"<[^>]+>", "", html)
    assert known.replace("-", "{-}").strip("{}") in latex or known in latex


def test_what_a_user_wrote_stays_text():
    evil = torch.ones(2, requires_grad=True)
    names = {"<b>x</b>": evil}
    with record(namespace=names) as recording:
        evil.sum().backward()
    assert "<b>" not in recording["<b>x</b>"]._repr_html_()
