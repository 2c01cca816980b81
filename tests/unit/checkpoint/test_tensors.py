"""The safetensors library reads what is saved."""

import errno
import itertools
import os
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ffstream.checkpoint import tensors
from ffstream.checkpoint.tensors import bytes_of, save
from ffstream.ff.buffers import BufferPool

DTYPES = list(tensors.DTYPE_NAMES)
few = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@few
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
        max_size=8,
    )
)
def test_any_tensors_can_be_saved_and_loaded(tmp_path: Path, kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    kinds.pop("__metadata__", None)
    given_tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    path = tmp_path / "x"
    path.unlink(missing_ok=True)
    saved = save(given_tensors, path, lambda size: None)
    assert equal(load_file(path), given_tensors)
    assert saved == (path.stat().st_size, xxhash.xxh3_128(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("direct", [True, False])
def test_tensors_larger_than_the_buffer_can_be_saved_and_loaded(
    tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr(tensors, "_DIRECT", 0)
    large = {"a": torch.randn(3, 1_000_001), "b": torch.arange(1 << 20), "c": torch.randn(7).to(torch.bfloat16)}
    wrote: list[int] = []
    saved = save(large, tmp_path / "x", wrote.append)
    assert equal(load_file(tmp_path / "x"), large)
    assert sum(wrote) == saved.bytes == (tmp_path / "x").stat().st_size
    assert max(wrote) <= 4 << 20
    assert saved.xxh3_128 == xxhash.xxh3_128((tmp_path / "x").read_bytes()).hexdigest()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OSError, match="exists"):
        save({}, tmp_path / "x", lambda size: None)


def test_a_partial_direct_write_is_completed_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, because a quota ends inside a block."""
    write, calls = os.write, itertools.count()

    def take_a_part(descriptor: int, memory: memoryview) -> int:
        call = next(calls)
        if call == 1:
            raise OSError(errno.EINVAL, "odd")
        return write(descriptor, memory[: 1 << 20] if call == 0 else memory)

    monkeypatch.setattr(os, "write", take_a_part)
    large = {"a": torch.randn(3_000_000)}
    saved = save(large, tmp_path / "x", lambda size: None)
    monkeypatch.undo()
    assert equal(load_file(tmp_path / "x"), large)
    assert saved.xxh3_128 == xxhash.xxh3_128((tmp_path / "x").read_bytes()).hexdigest()


def test_bytes_that_are_still_needed_are_not_overwritten_by_later_copies() -> None:
    """As those of a part of a checkpoint that is being sent while its stage learns on."""
    pool, before, after = BufferPool(), torch.zeros(1 << 16), torch.ones(1 << 16)
    sending = bytes_of(pool.copy("parameters", before))
    kept = pool.copy("parameters", after)
    assert bytes(sending) == before.numpy().tobytes()
    address = kept.data_ptr()
    del kept
    assert pool.copy("parameters", after).data_ptr() == address, "memory that nobody needs is used again"
