"""The parts of tools/gpu that need neither a device nor a network."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.tools.scripts import load


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return load("gpu")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pytest-timeout>=2.3", "pytest-timeout"),
        ("pydantic_core-2.50.4-cp312-cp312-manylinux2014_x86_64.whl", "pydantic-core"),
        ("numpy", "numpy"),
        ("Prometheus_Client>=0.20", "prometheus-client"),
    ],
)
def test_names_of_packages_are_normal(gpu: ModuleType, text: str, name: str) -> None:
    assert gpu.normal(text) == name


def test_torch_is_not_among_the_wheels(gpu: ModuleType) -> None:
    names = [gpu.normal(each) for each in gpu.requirements()]
    assert "torch" not in names
    assert {"numpy", "pyzmq", "pydantic", *gpu.FOR_TESTS} <= set(names)


def test_a_package_is_missing_when_it_is_not_there_or_too_old(gpu: ModuleType) -> None:
    assert gpu.is_here("pytest", "8.3")
    assert not gpu.is_here("pytest", "1000.0")
    assert not gpu.is_here("no-such-package-anywhere", "")


def test_without_wheels_the_error_says_how_to_get_them(gpu: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"tools/gpu --wheels {tmp_path}"):
        gpu.install(tmp_path, tmp_path / "site")


def test_a_measurement_that_takes_too_long_is_ended_and_its_rows_are_kept(
    gpu: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["/bin/sh", "-c", """echo '{"name": "x"}'; exec sleep 60""", "--json"]  # starts at once
    assert gpu.run(command, {}, 3.0) == (False, '{"name": "x"}\n')
    assert "was killed" in capfd.readouterr().err


def test_the_table_has_a_line_for_each_network_and_batch(gpu: ModuleType) -> None:
    way = "gpu/784-512-512/batch256/stage_streams"
    rows = [
        {"name": f"{way}/over_backprop_mlp", "value": 2e6, "peer": "backprop_mlp", "peer_value": 1e6, "ratio": 2.0},
        {"name": f"{way}/share_of_products", "value": 1.0, "peer": "products", "peer_value": 10.0, "ratio": 0.1},
        {"name": "gpu/784-512-512/batch256/stage_graphs", "failed": "RuntimeError: no graphs here"},
    ]
    rows += [{"name": "gpu/784-512-512/batch2048", "failed": "not started: the limit of 180 s has passed"}]
    head, line, last = gpu.table(rows).splitlines()
    assert head.split()[:3] == ["samples/s", "backprop_mlp", "one_stream"]
    assert line.split() == ["784-512-512", "batch256", "1,000,000", "2,000,000", "10.0%", "failed"]
    assert last.split() == ["784-512-512", "batch2048", "failed"]
