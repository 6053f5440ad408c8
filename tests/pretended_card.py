"""A CUDA device where there is none: tensors that say they are on it, compute on the CPU, and tell what one would not.

Inside `card(monkeypatch)` `device: cuda` is there, and everything takes the form that it has on one. What would fail on
a card fails: tensors of card and host in one operation, arrays of a tensor on the card, a kernel that is given a tensor
of the host. Inside `Card.asks_nothing` so does what waits for the device: reading a value, a shape that depends on one,
a copy to the host, a copy from it that is not of pinned memory.

Not shown: what streams order, autocast (that of the CPU is taken), memory, speed.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from dmoe.shards import prefetch as ahead

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
CARD_BYTES, PEAK_BYTES = 80 << 30, 3 << 20
# Operations that need a value, or whose result has a length that depends on values.
WAITING = (
    *("_local_scalar_dense", "nonzero", "_unique", "unique", "bincount", "masked_select", "is_nonzero", "equal"),
    *("_linalg_eigh", "_linalg_svd", "linalg_lstsq", "_linalg_check_errors", "repeat_interleave"),
)
_BY_INDEX = ("index", "index_put", "index_put_", "_index_put_impl_")
_COPIES = ("copy_", "_to_copy")


class OnCard(Tensor):
    """A tensor on the card; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCard":
        made: OnCard = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CPU
        )
        made.held = held
        return made

    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.held})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.cpu:
            return _to_host(args[0], args[0].dtype)
        if func is Tensor.tolist:
            return _to_host(args[0], args[0].dtype).tolist()
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.pin_memory):
            raise TypeError(f"{func.__name__} of a tensor on the card")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` of a tensor on the card, which torch takes to be on the CPU."""
    device, dtype, copy = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("copy", False)
    for one in args:
        if isinstance(one, Tensor):
            device, dtype = one.device, one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, str | torch.device):
            device = one
    dtype = dtype or tensor.dtype
    if device is None or torch.device(device).type == "cuda":
        return tensor if dtype == tensor.dtype and not copy else torch.ops.aten._to_copy(tensor, dtype=dtype)
    return _to_host(tensor, dtype)


def _to_host(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    Card.leaving = True
    try:
        found: Tensor = torch.ops.aten._to_copy(tensor, dtype=dtype, device=CPU)
    finally:
        Card.leaving = False
    return found


class Card:
    """What waited for the device, and whether that is an error now."""

    strict = False
    waited: ClassVar[list[str]] = []
    pinned: ClassVar[set[int]] = set()
    leaving = False  # a copy is to the host, which torch takes any tensor to be on

    @classmethod
    @contextmanager
    def asks_nothing(cls, wanted: bool = True) -> Iterator[None]:
        before, cls.strict = cls.strict, wanted
        try:
            yield
        finally:
            cls.strict = before


def _check(name: str, args: Any, tensors: Sequence[Tensor], device: torch.device | None) -> None:
    there = [one for one in tensors if isinstance(one, OnCard)]
    here = [one for one in tensors if not isinstance(one, OnCard) and one.dim() > 0]
    waits = bool(there) and name.startswith(WAITING)
    if name == "_to_copy" and device is not None:
        if there and device.type == "cpu":
            waits = True
        elif here and device.type == "cuda":
            waits = id(here[0]) not in Card.pinned
    elif name == "copy_":
        waits = isinstance(tensors[0], OnCard) != isinstance(tensors[1], OnCard)
    elif there and name in _BY_INDEX:
        index = [one for one in args[1] if one is not None]
        waits = any(one.dtype == torch.bool or not isinstance(one, OnCard) for one in index)
    elif there and here:
        shapes = [(type(one).__name__, tuple(one.shape)) for one in tensors]
        raise RuntimeError(f"{name}: tensors on the card and on the host: {shapes}")
    if waits:
        Card.waited.append(name)
        assert not Card.strict, f"{name} waits for the device"


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    there = any(isinstance(one, OnCard) for one in tensors)
    if name == "_to_copy" and there and not Card.leaving:
        device = CUDA
    elif torch._C._current_autograd_node() is not None and (there or not tensors):
        device = CUDA  # zeros of a backward pass, which torch makes where it takes the card to be: on the CPU
    _check(name, args, tensors, device)
    given_args, given_kwargs = tree_map(_held, (args, kwargs))
    found = func(*given_args, **given_kwargs)
    if torch.Tag.inplace_view in func.tags and isinstance(args[0], OnCard):
        with no_dispatch():  # the shape that it shows follows
            func(*args, **kwargs)
    if not (there if device is None else device.type == "cuda"):
        return found
    own = {id(one.held): one for one in tensors if isinstance(one, OnCard)}
    return tree_map(lambda one: own[id(one)] if id(one) in own else _on_card(one), found)


def _on_card(one: Any) -> Any:
    return OnCard(one) if isinstance(one, Tensor) else one


def _held(one: Any) -> Any:
    if isinstance(one, OnCard):
        return one.held
    return CPU if isinstance(one, torch.device) else one


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """`cuda` is `cuda:0`, which torch would ask a driver for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            args = [args[0], *map(_numbered, args[1:])]
        if "device" in kwargs:
            kwargs["device"] = _numbered(kwargs["device"])
        return func(*args, **kwargs)


def _numbered(one: Any) -> Any:
    is_cuda = (isinstance(one, torch.device) and one.type == "cuda") or (isinstance(one, str) and one == "cuda")
    return CUDA if is_cuda else one


@contextmanager
def _modes() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_Operations())
        stack.enter_context(_Names())
        yield


class _Stream:
    """Work is done when it is asked for, so that nothing is left to wait for."""

    def __init__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        pass

    def is_capturing(self) -> bool:
        return False


class _Current(nullcontext[None]):
    """`torch.cuda.device` and `torch.cuda.stream`."""

    def __init__(self, _: Any) -> None:
        super().__init__()


def _pinned(self: Tensor) -> Tensor:
    found = self.clone()
    Card.pinned.add(id(found))
    _KEPT.append(found)
    return found


_KEPT: list[Tensor] = []


@contextmanager
def card(monkeypatch: pytest.MonkeyPatch, *, triton: bool = False) -> Iterator[type[Card]]:
    """Inside there is a CUDA device; with `triton` its kernels run in the interpreter, else they are not installed."""
    if torch.cuda.is_available():
        pytest.skip("there is a card: make test-gpu")
    with monkeypatch.context() as patch:
        _take_the_place_of_torch_cuda(patch)
        patch.setattr("dmoe.kernels.row_access.HAS_TRITON", triton)
        if triton:
            _kernels_see_what_is_held(patch)
        _threads_take_part(patch)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _modes():
                yield Card
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_overwrite_module_params_on_conversion(before)
            Card.pinned.clear()
            Card.waited.clear()
            _KEPT.clear()


def _take_the_place_of_torch_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda *_: True,
        "get_device_name": lambda *_: "a pretended card",
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=CARD_BYTES),
        "synchronize": lambda *_: None,
        "max_memory_allocated": lambda *_: PEAK_BYTES,
        "get_rng_state": lambda *_: torch.arange(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "device": _Current,
        "stream": _Current,
        "Stream": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # Whether torch was built for CUDA or not.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: CUDA)  # noqa: ARG005
    monkeypatch.setattr(torch.accelerator, "current_stream", _Stream)
    monkeypatch.setattr(Tensor, "pin_memory", _pinned)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch, "autocast", _autocast_of_the_cpu(torch.autocast))
    # A view that is made there of a tensor from before has no place for what autograd counts.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    real = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda *_, **__: real([]))
    by_device = torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype  # type: ignore[attr-defined]

    def on_card(lists: Any, *given: Any) -> Any:
        return {(CUDA, dtype): found for (_, dtype), found in by_device(lists, *given).items()}

    monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", on_card)


def _threads_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes of torch are those of a thread."""
    produce = ahead._produce

    def in_thread(*given: Any) -> None:
        with _modes():
            produce(*given)

    monkeypatch.setattr(ahead, "_produce", in_thread)


def _autocast_of_the_cpu(real: Any) -> Any:
    def made(_: str, *given: Any, **options: Any) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = real("cpu", *given, **options)
        return found

    return made


def _kernels_see_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    real = interpreter.GridExecutor.__call__

    def launch(self: Any, *given: Any, **options: Any) -> None:
        tensors = [one for one in given if isinstance(one, Tensor)]
        assert all(isinstance(one, OnCard) for one in tensors), "a kernel is given a tensor of the host"
        with Card.asks_nothing(False), _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
            real(self, *map(_held, given), **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
