"""Every name of PyTorch's that is not public and that chainrule uses, in one place.

No other file imports one, or reads one from a module of PyTorch's; `tests/test_pytorch_internals.py` holds that. What
PyTorch imports late (its compiler, its distributed part) is behind functions here. `ATTRIBUTES` are those of objects,
which other files read. All were found in the versions of `SEEN`. A version without one of them cannot be supported
before this file says what takes its place. `python -m tests.versions` tries other versions.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from typing import Any

import torch

SEEN = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
"""The versions of PyTorch in which all of these names were found."""

try:
    from torch import _disable_dynamo, _is_functional_tensor, _neg_view  # type: ignore[attr-defined]
    from torch._C import (  # type: ignore[attr-defined]
        DisableTorchFunction,
        DispatchKey,
        DispatchKeySet,
        _are_functorch_transforms_active,
        _current_graph_task_id,
        _DisableAutocast,
        _DisableFuncTorch,
        _DisableTorchDispatch,
        _dispatch_has_kernel,
        _dispatch_tls_local_exclude_set,
        _dispatch_tls_local_include_set,
        _ForceDispatchKeyGuard,
        _get_dispatch_stack_at,
        _get_function_stack_at,
        _get_obj_in_tls,
        _get_torch_function_state,
        _is_any_autocast_enabled,
        _is_fwd_grad_enabled,
        _is_key_in_tls,
        _is_tracing,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
        _pop_torch_dispatch_stack,
        _pop_torch_function_stack,
        _push_on_torch_dispatch_stack,
        _push_on_torch_function_stack,
        _RestorePythonTLSSnapshot,
        _set_fwd_grad_enabled,
        _set_grad_enabled,
        _set_torch_function_state,
        _stash_obj_in_tls,
        _storage_Use_Count,
        _TorchFunctionState,
        parse_schema,
    )
    from torch._C._autograd import _get_sequence_nr, _top_saved_tensors_default_hooks
    from torch._C._dynamo.eval_frame import get_eval_frame_callback
    from torch._C._functorch import is_functorch_wrapped_tensor
    from torch._decomp import decomposition_table
    from torch._decomp.decompositions import one_layer_lstm
    from torch._library.autograd import make_autograd_impl
    from torch._ops import HigherOrderOperator, OpOverload, _compute_keyset
    from torch.autograd.graph import _engine_run_backward
    from torch.nn.modules._functions import BackwardHookFunction
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.dropout import _DropoutNd
    from torch.utils._device import DeviceContext
    from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
except ImportError as error:
    raise ImportError(
        f"{error}. chainrule uses this name, which PyTorch does not promise to keep. It was found in PyTorch "
        f"{', '.join(SEEN)}, and this is {torch.__version__}: install one of those."
    ) from error

_remove_obj_from_tls: Any = getattr(torch._C, "_remove_obj_from_tls", None)

LIBRARY = "torch._library"
"""The module of the Functions that PyTorch makes for a custom operator."""
TRANSFORMED = "torch._functorch.autograd_function"
"""The module of the Functions that `vmap` makes of a user's."""
SCRIPTED = "DifferentiableGraph"
"""What the name of the node begins with that TorchScript makes for operations that it differentiates together."""
OPERATORS = "torch._ops"
"""The module of the operators of `torch.ops`."""

ATTRIBUTES = {
    "torch.Tensor": (
        "_backward_hooks", "_base", "_is_zerotensor", "_nested_tensor_size", "_post_accumulate_grad_hooks", "_version",
    ),
    "torch.UntypedStorage": ("_cdata",),
    "torch.nn.Module": ("_compiled_call_impl",),
    "torch.optim.Optimizer": ("_optimizer_step_post_hooks", "_optimizer_step_pre_hooks"),
    "torch._dynamo.eval_frame": ("_set_stance", "_stance"),
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod",),
    "torch._library.custom_ops.CustomOpDef": ("_init_fn",),
    "torch._ops.OpOverload": ("_opname", "_overloadname", "_schema"),
    "torch.amp.GradScaler": ("_maybe_opt_step",),
    "torch.distributed.ProcessGroup": ("_get_sequence_number_for_group",),
    "torch.distributed.tensor.DTensor": ("_local_tensor",),
    "torch.distributed.fsdp.FSDPModule": ("_get_fsdp_state",),
    "torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState": ("_fsdp_param_group",),
    "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam": ("_unsharded_param",),
    "torch.nn.parallel.DistributedDataParallel": ("_comm_hooks",),
    "torch._subclasses.functional_tensor.FunctionalTensorMode": ("_mode_key",),
    "torch.autograd.Function": ("_backward_cls",),
    "torch.autograd.function.BackwardCFunction": ("_forward_cls", "_sequence_nr"),
}  # fmt: skip
"""Attributes that are not public, by a class or module that has them; of a node of autograd's, by that of Functions."""


def stash(key: str, thing: object) -> None:
    """Let this thread, and those in which autograd runs its backward passes, carry an object."""
    if _takes_a_reference:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _stash_obj_in_tls(key, thing)


def unstash(key: str) -> None:
    """Remove it; in versions that cannot (2.11), None is carried from then on."""
    if _remove_obj_from_tls is not None:
        _remove_obj_from_tls(key)
    else:
        stash(key, None)


def stashed(key: str) -> Any:
    """The object that this thread carries, or None."""
    return _get_obj_in_tls(key) if _is_key_in_tls(key) else None


def _steals() -> bool:
    """Whether `_stash_obj_in_tls` forgets to count the reference that it gives back later, as before 2.12."""
    before = sys.getrefcount(_probe)
    _stash_obj_in_tls("chainrule", _probe)
    return sys.getrefcount(_probe) == before


_probe = object()
_takes_a_reference = _steals()
if _takes_a_reference:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_probe))
unstash("chainrule")


def forward_level() -> int:
    """How many levels of forward-mode differentiation are open, less one."""
    from torch.autograd import forward_ad

    return forward_ad._current_level


def compiler() -> Any:
    """The module with the compiler's stance."""
    import torch._dynamo.eval_frame as found

    return found


def compiler_is_loaded() -> bool:
    """Whether this process has loaded the compiler, which takes a second."""
    return "torch._dynamo.eval_frame" in sys.modules


def compiled_frames() -> int:
    """How many kinds of frames the compiler has counted."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    return len(counters.get("frames", ()))


def in_higher_order_compilation() -> bool:
    """Whether PyTorch compiles what it hands to a higher-order operator; False in versions that do not (2.11)."""
    operators = sys.modules.get("torch._higher_order_ops.utils")
    return bool(getattr(operators, "_in_hop_compile", bool)())


def body_of(operator: OpOverload) -> Any:
    """The Python function of an operator that `torch.library.custom_op` made; None for another."""
    made = getattr(sys.modules.get("torch._library.custom_ops"), "OPDEFS", {}).get(operator._schema.name)
    return getattr(made, "_init_fn", None)


def batched(function: Any) -> tuple[Any, tuple[int | None, ...]] | None:
    """The Function of which `vmap` made this one, and the batch axis of each argument (None: it has none)."""
    if getattr(function, "__module__", "") != TRANSFORMED:
        return None
    held = inspect.getclosurevars(function.forward).nonlocals
    return (held["autograd_function"], tuple(held["in_dims"])) if "in_dims" in held else None


def process_groups() -> list[Any]:
    """All process groups of this process."""
    return list(torch.distributed.distributed_c10d._world.pg_map)


def default_store() -> Any:
    """The store by which the ranks found one another."""
    return torch.distributed.distributed_c10d._get_default_store()
