"""The compiled loops work wherever the daemon can run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ffstream
from ffstream.ff.activation import Activation, Relu, Silu
from ffstream.ff.areas import AreaFormulas, area_shape
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape
from ffstream.ff.goodness import SumSquares
from ffstream.ff.kernels import fastest, fastest_areas
from ffstream.ff.label_formulas import LabelFormulas
from ffstream.ff.label_scheme import Groups, LabelScheme, Pixels, Vectors

PROGRAM = """
import torch
from ffstream.ff import kernels, objective
softmax = kernels.fastest_objective(objective.Softmax(alpha=1.0, smoothing=0.0), torch.device("cpu"))
gradient, loss = softmax.loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
assert gradient.tolist() == [[-0.5, 0.5]]
print(kernels.__file__)
"""


def test_loops_are_compiled_without_a_cache_if_no_folder_is_writable(tmp_path: Path) -> None:
    """For example in a container without a writable folder: the package belongs to root and there is no home
    folder."""
    package = tmp_path / "ffstream"
    shutil.copytree(Path(ffstream.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ff" / "__pycache__").write_text("a file in place of the folder: not even root can write into it")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(package))


def test_compiled_sigmoids_are_accurate_everywhere() -> None:
    from ffstream.ff import loops

    z_N = torch.cat((torch.linspace(-20, 20, 4001), torch.tensor([-1e30, -1e3, 1e3, 1e30])))
    found_N = torch.tensor([loops.sigmoid(each) for each in z_N.numpy()], dtype=torch.float64)
    assert float((found_N - z_N.double().sigmoid()).abs().max()) < 2e-7


@pytest.mark.parametrize("activation", [Relu(), Silu()], ids=["relu", "silu"])
@pytest.mark.parametrize("scheme", [Vectors(), Pixels(), Groups()], ids=["vectors", "pixels", "groups"])
def test_compiled_loops_equal_their_formulas(activation: Activation, scheme: LabelScheme) -> None:
    exact = LabelFormulas(activation, SumSquares(), scheme, 5, (37,))
    fast = fastest(exact, torch.device("cpu"))
    assert type(fast) is not LabelFormulas
    generator = torch.Generator().manual_seed(1)
    z_NF, vectors_LF, scale_N, gradient_NL = (
        torch.randn(shape, generator=generator) * 3 for shape in ((11, 37), (5, 37), (11,), (11, 5))
    )
    z_NF[0] = 100.0
    z_NF[1] = -100.0
    given, wide = [
        (z_NF.to(dtype), scale_N.to(dtype), {"label_vectors": vectors_LF.to(dtype)})
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close(fast.by_label(*given), exact.by_label(*wide))
    error_NF, gradients = fast.label_errors(*given, gradient_NL, Buffers())
    want_NF, want = exact.label_errors(*wide, gradient_NL.double(), Buffers())
    assert_close(error_NF, want_NF)
    assert gradients.keys() == want.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, want[name])


@pytest.mark.parametrize("activation", [Relu(), Silu()], ids=["relu", "silu"])
def test_compiled_areas_equal_their_formulas(activation: Activation) -> None:
    shape, areas = (6, 4, 3), 2
    exact_area = LabelFormulas(activation, SumSquares(), Vectors(), 5, area_shape(shape, areas))
    exact = AreaFormulas(exact_area, shape, areas)
    fast = fastest_areas(fastest(exact_area, torch.device("cpu")), shape, areas)
    assert type(fast) is not AreaFormulas
    generator = torch.Generator().manual_seed(1)
    z_NF, vectors_LF, scale_N, gradient_NAL = (
        torch.randn(size, generator=generator) * 3 for size in ((11, 72), (5, 72), (11,), (11, 4, 5))
    )
    given = (z_NF, scale_N, {"label_vectors": vectors_LF})
    wide = (z_NF.double(), scale_N.double(), {"label_vectors": vectors_LF.double()})
    assert_close(fast.areas_by_label(*given), exact.areas_by_label(*wide))
    assert_close(fast.by_label(*given), exact.by_label(*wide))
    error_NF, gradients = fast.label_errors(*given, gradient_NAL, Buffers())
    want_NF, want = exact.label_errors(*wide, gradient_NAL.double(), Buffers())
    assert_close(error_NF, want_NF)
    assert_close(gradients["label_vectors"], want["label_vectors"])


def test_no_rows_have_no_goodness() -> None:
    fast = fastest(LabelFormulas(Relu(), SumSquares(), Vectors(), 4, (5,)), torch.device("cpu"))
    found = fast.by_label(torch.ones(0, 5), torch.ones(0), {"label_vectors": torch.ones(4, 5)})
    assert found.shape == (0, 4)


def assert_close(found: Tensor, want: Tensor) -> None:
    """To the precision of float32."""
    assert torch.allclose(found.double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().mean()))


def test_a_subclass_of_a_part_uses_its_own_formulas() -> None:
    """The compiled kernel of its base class would silently compute something else."""

    class Doubled(SumSquares):
        def _value(self, h: Tensor) -> Tensor:
            return 2 * super()._value(h)

        def _gradient(self, h: Tensor) -> Tensor:
            return 2 * super()._gradient(h)

    class Shifted(Vectors):
        def expand(
            self,
            z_NF: Tensor,
            label_scale_N: Tensor,
            parameters: Mapping[str, Tensor],
            labels: int,
            shape: Shape,
        ) -> Tensor:
            return super().expand(z_NF, label_scale_N, parameters, labels, shape) + 1

    z_NF, label_scale_N, weights = torch.ones(3, 5), torch.ones(3), {"label_vectors": torch.zeros(4, 5)}
    for goodness, scheme, factor in (
        (SumSquares(), Vectors(), 5),
        (Doubled(), Vectors(), 10),
        (SumSquares(), Shifted(), 20),
    ):
        fast = fastest(LabelFormulas(Relu(), goodness, scheme, 4, (5,)), torch.device("cpu"))
        assert fast.by_label(z_NF, label_scale_N, weights).tolist() == [[factor] * 4] * 3
