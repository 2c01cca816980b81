"""The fuzzer is fetched when somebody fuzzes; that its targets still run is seen here."""

from pathlib import Path

import pytest

from tools.fuzzing.targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"control"}))  # its daemon ends with its process
def test_a_target_takes_its_seeds_and_what_is_none(name: str, tmp_path: Path) -> None:
    run, seeds = TARGETS[name](tmp_path)
    for data in (*seeds, b"", b"\0", b"\xff" * 50):
        run(data)
