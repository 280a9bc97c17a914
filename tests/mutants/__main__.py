"""python -m tests.mutants [-v]: prove a step with each mutant in it, and print how they fared.

The written mutants come first, in two sizes and three number types, with their right twins; then those that are made of
right gradients by rule. With -v each is shown that was not named rightly.
"""

import sys

import torch

from tests.mutants import mutants, report, tried
from tests.mutants.bed import figures, judge, trials

torch.set_num_threads(1)
judged = [judge(trial) for trial in trials(wrong=True)]
right = [judge(trial) for trial in trials(wrong=False)]
outcomes = [tried(mutant) for mutant in mutants()]
if "-v" in sys.argv[1:]:
    for each in [*judged, *right]:
        wrong = each.trial.wrong is not None
        if each.flagged != wrong or each.elsewhere or (wrong and not each.named):
            print(each.trial.name, *(f"    {kind}: {text}" for kind, text in each.repairs), sep="\n")
    for outcome in outcomes:
        if not outcome.named or not outcome.flagged or outcome.elsewhere:
            print(outcome.mutant.name)
            print(f"    {outcome.called or 'not flagged'}: {outcome.text} {outcome.elsewhere or ''}".rstrip())
print(figures(judged, right))
print(report(outcomes))
