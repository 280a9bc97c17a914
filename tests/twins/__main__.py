"""python -m tests.twins [SEEDS] [-v]: how right backwards fared, by the way in which they were run."""

import sys
import time

import torch

from tests.twins import WAYS, tried
from tests.twins.operations import EVERY

torch.set_num_threads(1)
seeds = range(int(next((each for each in sys.argv[1:] if each.isdigit()), 3)))
named = [each for each in sys.argv[1:] if each in WAYS]
total = alarms = 0
for name in named or WAYS:
    start = time.perf_counter()
    outcome = tried(name, seeds)
    total, alarms = total + outcome.runs, alarms + len(outcome.alarms)
    words = ", ".join(f"{many} {verdict}" for verdict, many in outcome.own.most_common())
    seconds = time.perf_counter() - start
    print(f"{name:22} {outcome.runs:4} runs, {len(outcome.alarms):2} alarms; {words}   {seconds:.0f} s", flush=True)
    for each in outcome.alarms:
        print(f"    ALARM {each}")
    if "-v" in sys.argv[1:]:
        for reason, many in outcome.reasons.most_common():
            print(f"    {many:3} {reason}")
print(f"{total} runs of {len(EVERY)} right backwards, {alarms} alarms")
