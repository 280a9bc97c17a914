"""Small models of `transformers`, in training, with pad tokens in the batch: nothing disagrees, in any view."""

from __future__ import annotations

import pytest

from tests.zoo.transformers import MODELS, Model, alarms, verified

pytestmark = pytest.mark.usefixtures("quiet")

pytest.importorskip("transformers")
QUICK = {"ElectraForMaskedLM, no mask", "OPTForCausalLM"}
EVERY = [pytest.param(each, id=each.title, marks=() if each.title in QUICK else pytest.mark.slow) for each in MODELS]


@pytest.mark.parametrize("model", EVERY)
def test_nothing_disagrees(model: Model) -> None:
    recording, verification = verified(model)
    assert verification.rows
    assert not alarms(recording, verification)
    assert "by convention" in {row.verdict for row in verification.rows} or model.title not in QUICK
