"""Where a stage computes. On CUDA each stage has its own stream; on the CPU nothing needs ordering."""

import os
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ffstream.errors import ConfigError
from ffstream.ff.activities import Activities


class DeviceStream:
    """On the CPU: work is done when the call returns."""

    device: torch.device | None = None  # where activities must be, if they are not in the host's memory

    def use(self) -> AbstractContextManager[Any]:
        """The context in which the stage's thread works."""
        return nullcontext()

    def record(self) -> Any:
        """An event that is set once all work so far is done."""
        return None

    def receive(self, activities: Activities, ready: Any) -> None:
        """Makes later work wait for that event."""

    def settle(self) -> None:
        """Limits how far the host runs ahead of the device."""

    def synchronize(self) -> None:
        """Waits for all work."""


class CudaStream(DeviceStream):
    """A CUDA stream. Events order it after the previous stage; the host runs at most `ahead` steps ahead."""

    def __init__(self, device: torch.device, ahead: int) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._ahead = ahead
        self._pending: deque[torch.cuda.Event] = deque()

    def use(self) -> AbstractContextManager[Any]:
        # The layers were made, and perhaps restored, on the default stream.
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def record(self) -> torch.cuda.Event:
        event: torch.cuda.Event = self._stream.record_event()
        return event

    def receive(self, activities: Activities, ready: Any) -> None:
        if ready is None:  # they came over a socket, and were copied to the device on this stream
            return
        self._stream.wait_event(ready)
        # The allocator must not reuse the sender's memory before this stream has read it.
        for tensor in (activities.h_NF, activities.labels_N, *activities.carried):
            tensor.record_stream(self._stream)

    def settle(self) -> None:
        self._pending.append(self._stream.record_event())
        if len(self._pending) > self._ahead:
            self._pending.popleft().synchronize()

    def synchronize(self) -> None:
        self._stream.synchronize()


def choose_device(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto`: CUDA if a device is available. This process then computes reproducibly on CUDA.

    Raises ConfigError.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            'pipeline.device = "cuda": torch sees no CUDA device', hint="set pipeline.device to cpu or auto"
        )
    if name == "cuda":
        compute_reproducibly()
    return torch.device(name)


def compute_reproducibly() -> None:
    """From here on, the same numbers lead to the same bits on the same CUDA device: a resumed run equals one that was
    never interrupted. An operation that cannot do this raises an error.

    cuBLAS reads its workspace from the environment at the first product; with another one, the results of products on
    several streams may differ.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False  # pipeline.precision says how exact products are, and fp32 is fp32
    torch.use_deterministic_algorithms(True)
    # Otherwise torch fills all new memory, so that reading it before writing is reproducible, too.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_product_dtype(name: str, device: torch.device) -> torch.dtype:
    """`fp32`, `bf16`, or `auto`: bf16 if the processor has instructions for it."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        name = "bf16" if fast else "fp32"
    if name == "bf16" and device.type == "cpu":
        bound_compiled_products()
    return torch.bfloat16 if name == "bf16" else torch.float32


def bound_compiled_products() -> None:
    """On the CPU oneDNN compiles a bf16 product for each shape, and torch keeps it: 1,024 of them are 600 MB.

    The network has a few dozen shapes, but flushed microbatches can have any number of rows. The limits are read at
    the first such product, so they must be set before. torch's cache (the first variable; one per thread) sits on top
    of oneDNN's (one for all threads).
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16") or capabilities.get("amx_bf16"))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def make_stream(device: torch.device, ahead: int) -> DeviceStream:
    """A new stream on that device."""
    return CudaStream(device, ahead) if device.type == "cuda" else DeviceStream()
