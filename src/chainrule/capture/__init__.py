"""Records a step while the user's code runs: modes, hooks and the tape; then `lowering` turns the tape into a graph.

Imports `graph`. Knows no mathematics: what an operation means is in `rules`.

    recorder         starts and stops all of it; sees calls, operations, modules and optimizers
    modes            show the recorder what the user calls, and each ATen operation
    global_hooks     hooks of the whole process, beside PyTorch's dictionaries of them
    node_hooks       run backward passes and see the gradients at each node
    retention        decides what is kept; placeholders for the rest
    sweep            finds the autograd node of each operation; measures and frees, in batches, what is not kept
    tape             what happened, in order, and copies of what was overwritten
    borrowed         large tensors that others own
    data_parallel    gradients that are combined over ranks
    source           from an instruction back to the user's expression and names
    lowering/        tape to graph
"""
