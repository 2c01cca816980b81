"""The compiled loops load wherever the daemon may run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ffstream


def test_they_are_compiled_anew_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """As in a container that may write nowhere: the package belongs to root, and there is no home."""
    package = tmp_path / "ffstream"
    shutil.copytree(Path(ffstream.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ff" / "__pycache__").write_text("no folder: not even root can write into it")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
    program = "from ffstream.ff import kernels; print(kernels.__file__)"
    command = [sys.executable, "-c", program]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(package))
