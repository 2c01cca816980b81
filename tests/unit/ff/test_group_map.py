"""Groups of units that are compared with one wrong label learn only from the rows that were compared."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ffstream.ff.buffers import ReusedBuffers
from ffstream.ff.connection import Dense
from ffstream.ff.group_map import GroupMap, map_of
from ffstream.ff.maps import WEIGHT, DenseMap
from ffstream.ff.presets import recipe
from ffstream.ff.recipe import Recipe
from tests.battery import check_pipeline

INPUTS, UNITS, LABELS = 300, 504, 10  # four units are left over


def compared_rows(rows: int) -> Tensor:
    """Errors (rows, UNITS) in the groups of each row's own and one wrong label; group 9 has none."""
    generator = torch.Generator().manual_seed(3)
    own_N = torch.randint(0, 9, (rows,), generator=generator)
    wrong_N = (own_N + torch.randint(1, 9, (rows,), generator=generator)) % 9
    groups_O = torch.arange(UNITS) // (UNITS // LABELS)
    compared_NO = (groups_O == own_N[:, None]) | (groups_O == wrong_N[:, None])
    return torch.randn(rows, UNITS, generator=generator) * compared_NO


def weight_gradient(of: DenseMap, rows: int, dtype: torch.dtype) -> Tensor:
    x_NI = torch.linspace(-1, 1, rows * INPUTS).sin().view(rows, INPUTS).to(dtype)
    into = {WEIGHT: torch.full((UNITS, INPUTS), 7.0), "bias": torch.full((UNITS,), 7.0)}
    of.gradients(compared_rows(rows), (), x_NI, torch.linspace(0.5, 2, rows), {}, into, ReusedBuffers())
    return torch.cat([value.flatten() for value in into.values()])


def paired() -> Recipe:
    return recipe(
        "fast",
        label_scheme="groups",
        goodness={"kind": "mean_squares", "negative": True},
        objective="paired",
        negatives="hardest",
        widths=(UNITS, UNITS),
        batch_size=96,
        warmup_samples=0,
    )


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [(256, torch.float32), (8, torch.float32), (768, torch.bfloat16), (8, torch.bfloat16)],
    ids=["float32", "few rows", "bfloat16", "few rows in bfloat16"],
)
def test_skipping_rows_without_an_error_changes_nothing(rows: int, dtype: torch.dtype) -> None:
    options = Dense(units=UNITS)
    found = weight_gradient(GroupMap(options, (INPUTS,), LABELS), rows, dtype)
    want = weight_gradient(DenseMap(options, (INPUTS,)), rows, dtype)
    rounding = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, want, rtol=rounding, atol=rounding)


def test_a_row_with_an_error_in_every_group_counts_in_every_group() -> None:
    options = Dense(units=UNITS)
    rows = 256
    e_NO, x_NI, ones_N = torch.ones(rows, UNITS), torch.ones(rows, INPUTS), torch.ones(rows)
    into = {WEIGHT: torch.empty(UNITS, INPUTS), "bias": torch.empty(UNITS)}
    GroupMap(options, (INPUTS,), LABELS).gradients(e_NO, (), x_NI, ones_N, {}, into, ReusedBuffers())
    assert bool((into[WEIGHT][: LABELS * 50] == rows).all())


@pytest.mark.parametrize(
    ("given", "skips"),
    [
        (paired(), True),
        (recipe("stream"), False),
        (paired().change(label_scheme="vectors"), False),
    ],
    ids=["one wrong label", "all labels", "label vectors"],
)
def test_only_groups_with_one_wrong_label_skip_rows(given: Recipe, skips: bool) -> None:
    assert isinstance(map_of(given.layers[0], (784,), LABELS), GroupMap) is skips


def test_stages_that_skip_rows_equal_the_serial_reference(tmp_path: Path) -> None:
    check_pipeline(paired(), tmp_path)
