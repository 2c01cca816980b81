"""The targets of `tools/fuzz` run on their first inputs. The fuzzer itself is not needed here."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.fuzzing.targets import TARGETS

SEEDS = """
import sys
from pathlib import Path
from tests.harness.fuzzing.targets import TARGETS
run, seeds = TARGETS[sys.argv[1]](Path(sys.argv[2]))
for data in (*seeds, b"", b"\\0", b"\\xff" * 50):
    run(data)
print(len(seeds))
"""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_accepts_its_seeds_and_other_bytes(name: str, tmp_path: Path) -> None:
    """In a separate process, because a target does not stop its daemon."""
    command = [sys.executable, "-c", SEEDS, name, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0
