"""python -m tests.precision: the relative errors that are seen, and false alarms over right functions and networks."""

import torch

from tests.mutants.operations import OPERATIONS
from tests.precision import DTYPES, NOT_IN_BFLOAT16, SEEN, false_alarms, is_seen, network_alarms, one_wrong_element

torch.set_num_threads(1)
for dtype in DTYPES:
    left_out = NOT_IN_BFLOAT16 if dtype == torch.bfloat16 else set()
    operations = [operation for operation in OPERATIONS if operation.name not in left_out]
    for error in (SEEN[dtype], SEEN[dtype] / 10):
        missed = [operation.name for operation in operations if not is_seen(operation, dtype, error)]
        print(f"{dtype}: a relative error of {error:g} is seen in {len(operations) - len(missed)} of {len(operations)}"
              f" operations; missed: {missed or 'none'}", flush=True)  # fmt: skip
    for count in (1000, 100_000, 1_000_000):
        seen = one_wrong_element(count, dtype)
        print(f"    one element of {count:,}, too large by half: {'seen' if seen else 'NOT SEEN'}", flush=True)
for dtype in DTYPES:
    for name, alarms in (("functions", [*false_alarms(dtype, 6)]), ("networks", [*network_alarms(dtype, range(30))])):
        print(f"{dtype}: {len(alarms)} false alarms over right {name}", *alarms[:20], sep="\n    ", flush=True)
