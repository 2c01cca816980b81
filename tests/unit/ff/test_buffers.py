import torch

from ffstream.ff.buffers import BufferPool, Buffers, ReusedBuffers


def test_reused_buffers_return_the_same_memory_and_grow_on_demand() -> None:
    buffers, like = ReusedBuffers(), torch.empty(0)
    first = buffers.get("a", like, 4, 3)
    assert first.shape == (4, 3)
    assert buffers.get("a", like, 2, 3).data_ptr() == first.data_ptr()
    assert buffers.get("b", like, 4, 3).data_ptr() != first.data_ptr()
    assert buffers.get("a", like, 9, 3).shape == (9, 3)
    assert buffers.get("a", like.to(torch.bfloat16), 4, 3).dtype == torch.bfloat16


def test_buffers_allocate_new_memory() -> None:
    buffers, like = Buffers(), torch.empty(0)
    one, other = buffers.get("a", like, 4), buffers.get("a", like, 4)
    assert one.data_ptr() != other.data_ptr()


def test_a_copy_keeps_its_memory_while_it_is_referenced() -> None:
    copies = BufferPool()
    source = torch.arange(4.0)
    held = copies.copy("x", source)
    source.add_(1)
    assert held.tolist() == [0, 1, 2, 3]
    other = copies.copy("x", source)
    assert other.data_ptr() != held.data_ptr()
    assert held.tolist() == [0, 1, 2, 3]


def test_the_memory_of_a_released_copy_is_reused() -> None:
    copies = BufferPool()
    source = torch.arange(4.0)
    held = copies.copy("x", source)
    where = held.data_ptr()
    del held
    assert copies.copy("y", source).data_ptr() != where
    assert copies.copy("x", source).data_ptr() == where
