"""Copies that are let go lend their memory to later ones, and never before."""

import torch

from ffstream.ff.copies import Copies


def test_memory_is_used_again_once_it_is_let_go() -> None:
    copies, source = Copies(), torch.randn(100)
    first = copies.copy("a", source)
    second = copies.copy("a", source + 1)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, source), "what is held is not written over"
    places = {first.data_ptr(), second.data_ptr()}
    del first, second
    third, fourth = copies.copy("a", source), copies.copy("a", source)
    assert {third.data_ptr(), fourth.data_ptr()} == places
    assert copies.copy("b", source).data_ptr() not in places


def test_a_copy_is_a_copy() -> None:
    source = torch.randn(5, 3)
    copy = Copies().copy("a", source)
    assert torch.equal(copy, source)
    source.zero_()
    assert copy.abs().sum() > 0
