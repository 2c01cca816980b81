"""Groups of units that are compared with one wrong label learn only from the rows that were compared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ffstream.ff import group_map
from ffstream.ff.buffers import ReusedBuffers
from ffstream.ff.connection import Dense
from ffstream.ff.group_map import GroupMap, map_of
from ffstream.ff.maps import WEIGHT, DenseMap
from ffstream.ff.presets import recipe
from ffstream.ff.recipe import Recipe
from tests.battery import check_gradients, check_pipeline, check_prediction, check_state

INPUTS, UNITS, LABELS = 300, 504, 10  # four units are left over


def compared_rows(rows: int) -> Tensor:
    """Errors (rows, UNITS) in the groups of each row's own and one wrong label; group 9 has none."""
    generator = torch.Generator().manual_seed(3)
    own_N = torch.randint(0, 9, (rows,), generator=generator)
    wrong_N = (own_N + torch.randint(1, 9, (rows,), generator=generator)) % 9
    groups_O = torch.arange(UNITS) // (UNITS // LABELS)
    compared_NO = (groups_O == own_N[:, None]) | (groups_O == wrong_N[:, None])
    return torch.randn(rows, UNITS, generator=generator) * compared_NO


def weight_gradient(of: DenseMap, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
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


@pytest.fixture
def only_skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of all rows is an error."""

    def product(*arguments: Any) -> None:
        raise AssertionError("no rows were skipped")

    monkeypatch.setattr(DenseMap, "product", product)


@pytest.fixture
def skipping(only_skipping: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are skipped however small the product is."""
    monkeypatch.setattr(group_map, "_PAYS_FROM", 0)


@pytest.mark.parametrize("rows", [1, 8, 256])
def test_skipping_rows_without_an_error_changes_nothing(rows: int, request: pytest.FixtureRequest) -> None:
    options = Dense(units=UNITS)
    want = weight_gradient(DenseMap(options, (INPUTS,)), rows)
    request.getfixturevalue("skipping")
    found = weight_gradient(GroupMap(options, (INPUTS,), LABELS), rows)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "dtype"), [(8, torch.float32), (256, torch.bfloat16)], ids=["few rows", "bfloat16"])
def test_all_rows_are_multiplied_where_skipping_takes_longer(
    rows: int, dtype: torch.dtype, only_skipping: None
) -> None:
    with pytest.raises(AssertionError, match="no rows were skipped"):
        weight_gradient(GroupMap(Dense(units=UNITS), (INPUTS,), LABELS), rows, dtype)


@pytest.mark.usefixtures("only_skipping")
def test_rows_are_skipped_where_that_is_faster() -> None:
    weight_gradient(GroupMap(Dense(units=UNITS), (INPUTS,), LABELS), 256)


@pytest.mark.usefixtures("skipping")
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
        (paired().change(labels=2), False),
    ],
    ids=["one wrong label", "all labels", "label vectors", "two labels"],
)
def test_only_groups_with_one_wrong_label_skip_rows(given: Recipe, skips: bool) -> None:
    assert isinstance(map_of(given.layers[0], (784,), given.labels), GroupMap) is skips


@pytest.mark.usefixtures("skipping")
@pytest.mark.parametrize("options", [{}, {"activation": "silu", "replay": 4}, {"objective": "threshold"}], ids=str)
def test_layers_that_skip_rows_pass_the_battery(options: dict[str, Any], tmp_path: Path) -> None:
    small = paired().change(**{"image_shape": [4, 4], "labels": 4, "widths": (13, 9), "batch_size": 8, **options})
    check_gradients(small)
    check_state(small)
    check_prediction(small)
    check_pipeline(small, tmp_path)


def test_stages_that_skip_rows_equal_the_serial_reference(tmp_path: Path) -> None:
    check_pipeline(paired(), tmp_path)
