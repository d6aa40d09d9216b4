"""live_peak: the bytes that a computation would hold at its highest, without computing it.

The step runs on fake tensors (shapes and devices without values, as ``torch.compile`` uses them), so
neither memory nor arithmetic is spent; a dispatch mode above them sees every storage come and go. It is
what the computation asks of the allocator: scratch inside a kernel and what the allocator keeps for later
come on top.
"""

# ruff: noqa: ANN401 - a dispatch mode is given, and gives, whatever an operator does

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten


def live_peak(step: Callable[[], object]) -> int:
    """The most bytes of tensors that ``step`` holds at once, beyond those there are already.

    Where values decide shapes the largest is taken: a mask keeps everything. A number read from a tensor
    is 1, a truth false, as with padded batches.

    Args:
        step: makes its inputs itself, with torch; changes no tensor from outside in place.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Storages(fake) as storages:
        step()
    return int(storages.highest)


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Follows the storages that operations make, by weak references."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.live: int = 0
        self.highest: int = 0
        self._fake = fake
        self._outside: dict[int, Any] = {}  # of the model's weights, whose views take nothing
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN._local_scalar_dense.default:
            return _number(args[0])
        args, kwargs = tree_map(self._faked, (args, kwargs))
        devices = {a.device.type for a in tree_leaves(args) if isinstance(a, Tensor)}
        if len(devices) > 1 and "meta" in devices:  # forward mode makes its zero tangents there
            device = next(torch.device(name) for name in devices if name != "meta")
            args = tree_map(lambda a: _moved(a, device), args)
        if _is_composite(func):  # inference mode hands these over whole; what they allocate is inside
            with self:
                return func.decompose(*args, **kwargs)
        out = self._run(func, args, kwargs)
        for value in tree_leaves(out):
            # a sparse tensor has no storage but those of its places and values
            if isinstance(value, Tensor) and value.layout == torch.strided and not value._is_zerotensor():
                self._note(value)
        return out

    @staticmethod
    def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _ATEN.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if func is _ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            place, mask = next((n, i) for n, i in enumerate(args[1]) if i is not None)
            shape = args[0].shape
            return args[0].new_empty((*shape[:place], mask.numel(), *shape[place + mask.dim() :]))
        if func is _ATEN._efficientzerotensor.default and kwargs.get("device") == torch.device("meta"):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is _ATEN._has_same_storage_numel.default:
            return True
        if func is _ATEN._new_zeros_with_same_feature_meta.default:  # for a tangent laid out as its primal
            like = args[1]
            count = like.untyped_storage().nbytes() // like.element_size()
            return like.new_empty(count).as_strided(like.shape, like.stride(), like.storage_offset())
        return func(*args, **kwargs)

    def _faked(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        found = self._fake.from_tensor(value)
        storage = found.untyped_storage()
        self._outside[storage._cdata] = storage
        return found

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._outside:
            return
        self._known[key] = weakref.finalize(storage, self._drop, key, storage.nbytes())
        self._known[key].atexit = False
        self.live += storage.nbytes()
        self.highest = max(self.highest, self.live)

    def _drop(self, key: int, nbytes: int) -> None:
        self.live -= nbytes
        self._known.pop(key, None)


def _number(value: Tensor) -> float | int | bool:
    if value.dtype == torch.bool:
        return False
    return 1.0 if value.is_floating_point() else 1


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _is_composite(func: Any) -> bool:
    if func.namespace != "aten":
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))
