"""python -m tests.mutants [-v]: prove a step with each mutant in it, and print how they fared."""

import sys

import torch

from tests.mutants import mutants, report, tried

torch.set_num_threads(1)
outcomes = [tried(mutant) for mutant in mutants()]
if "-v" in sys.argv[1:]:
    for outcome in outcomes:
        if not outcome.named or not outcome.flagged or outcome.elsewhere:
            print(outcome.mutant.name)
            print(f"    {outcome.called or 'not flagged'}: {outcome.text} {outcome.elsewhere or ''}".rstrip())
print(report(outcomes))
