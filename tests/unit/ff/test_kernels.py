"""The compiled loops run wherever the daemon may run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ffstream

PROGRAM = """
import torch
from ffstream.ff import kernels, objective
softmax = kernels.fastest_objective(objective.Softmax(alpha=1.0, smoothing=0.0), torch.device("cpu"))
gradient, loss = softmax.loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
assert gradient.tolist() == [[-0.5, 0.5]]
print(kernels.__file__)
"""


def test_they_are_compiled_anew_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """As in a container that may write nowhere: the package belongs to root, and there is no home."""
    package = tmp_path / "ffstream"
    shutil.copytree(Path(ffstream.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ff" / "__pycache__").write_text("no folder: not even root can write into it")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(package))
