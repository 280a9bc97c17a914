"""Of any small network: a recording is the same after saving and loading, and every view shows its verdicts."""

import html
import json
import re
from dataclasses import replace

import torch
from hypothesis import HealthCheck, example, given, settings

import chainrule
from chainrule import views
from chainrule.document import Verdict
from tests.properties.networks import Network, networks
from tests.views.pages import data_of

WRONG = Network(("linear", "wrong", "relu"), width=2, batch=2, optimizer="sgd", seed=0)
few = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def verdicts(recording):
    return {row.node.index: (row.node.name, row.verdict) for row in recording.verify().rows}


def kinds(document):
    return [block.kind for _, section in document.walk() for block in section.blocks if isinstance(block, Verdict)]


def without_verdicts(document):
    blocks = [
        (section.title, [block for block in section.blocks if not isinstance(block, Verdict)])
        for _, section in document.walk()
    ]
    summary = [block for block in document.summary if not isinstance(block, Verdict)]
    rows = [replace(row, verdict=None) for row in document.rows]
    return document.title, summary, rows, document.sums, blocks


@few
@example(WRONG)
@given(networks)
def test_a_saved_recording_is_loaded_the_same(tmp_path, network):
    recording = network.recorded()
    recording.save(tmp_path / "step.safetensors")
    loaded = chainrule.load(tmp_path / "step.safetensors")
    # What is measured may differ in its last place: tensors that are read lie otherwise in memory.
    assert without_verdicts(loaded.document()) == without_verdicts(recording.document())
    assert kinds(loaded.document()) == [
        # A file does not hold the code of a user's function: nothing says that it is wrong, or that it is right.
        "not checked" if kind == "disagrees" else kind
        for kind in kinds(recording.document())
    ]
    for name, parameter in recording.parameters.items():
        assert torch.equal(loaded.parameters[name].grad, parameter.grad)
        if network.optimizer:
            assert torch.equal(loaded.parameters[name].after, parameter.after)
    expected = {
        index: (name, "not checked" if name == "WrongBackward" else verdict)
        for index, (name, verdict) in verdicts(recording).items()
    }
    assert verdicts(loaded) == expected


@few
@example(WRONG)
@given(networks)
def test_a_wrong_gradient_is_the_only_one_that_disagrees(network):
    for name, verdict in verdicts(network.recorded()).values():
        assert (verdict == "disagrees") == (name == "WrongBackward")


def of_terminal(text):
    return re.findall(r"^    (\d+) +(\w+) .*?  (\w[\w ]*?)(?:  +\S+)?$", text, re.MULTILINE)


def of_markdown(text):
    return re.findall(r"^\| (\d+) \| (\w+) \| .*? \| ([\w ]+) \|", html.unescape(text), re.MULTILINE)


def of_latex(text):
    return re.findall(r"^(\d+) & (\w+) & .*? & ([\w ]+) &", text, re.MULTILINE)


def of_json(text):
    (table,) = [
        block
        for section in json.loads(text)["document"]["sections"]
        for block in section["blocks"]
        if block["block"] == "table" and block["headers"][0] == "node"
    ]
    return [(row[0][0], row[1][0], row[3][0]) for row in table["rows"]]


def of_page(text):
    return of_json(json.dumps(data_of(text)))


SHOWN = {".txt": of_terminal, ".md": of_markdown, ".tex": of_latex, ".json": of_json, ".html": of_page}


@few
@example(WRONG)
@given(networks)
def test_every_view_shows_the_verdicts_of_the_proof(network):
    recording = network.recorded()
    verification = recording.verify()
    expected = [(str(index), *told) for index, told in verdicts(recording).items()]
    summary = "agrees" if verification.passed else "disagrees"
    document = verification.document()
    for suffix, shown in SHOWN.items():
        text = views.written(document, suffix)
        assert shown(text) == expected, suffix
    assert document.summary[0].kind == summary
    assert re.search(rf"[✓✗] {summary}:", views.written(document, ".txt"))


@few
@example(WRONG)
@given(networks)
def test_a_step_is_shown_with_the_verdicts_of_the_proof(network):
    recording = network.recorded()
    of_nodes = {verdict for _, verdict in verdicts(recording).values()}
    rows = recording.document(pointing=True).rows
    assert {row.verdict for row in rows} - {None} <= of_nodes
    assert any(row.verdict == "disagrees" for row in rows) == ("disagrees" in of_nodes)
    for suffix in (".json", ".html"):
        text = views.written(recording.document(pointing=True), suffix)
        data = data_of(text) if suffix == ".html" else json.loads(text)
        written = [row.get("verdict") for row in data["document"]["rows"]]
        assert written == [row.verdict for row in rows]
