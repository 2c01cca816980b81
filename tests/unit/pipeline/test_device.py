import subprocess
import sys

import pytest

# In a process of its own: what bounds memory is read once, at the first product.
_ANY_NUMBER_OF_ROWS = """
import torch
from ffstream.pipeline.device import choose_product_dtype

def anonymous_mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

torch.set_num_threads(1)
dtype = choose_product_dtype("bf16", torch.device("cpu"))
weight_OI = torch.ones(256, 128, dtype=dtype)

def learn(rows):
    x_BI = torch.ones(rows, 128, dtype=dtype)
    (x_BI @ weight_OI.t()).t() @ x_BI

for rows in range(1, 101):
    learn(rows)
before = anonymous_mb()
for rows in range(101, 501):
    learn(rows)
print(anonymous_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_any_number_of_rows_do_not_pile_up() -> None:
    """Without a bound these 800 shapes take 500 MB."""
    ended = subprocess.run(
        [sys.executable, "-c", _ANY_NUMBER_OF_ROWS], capture_output=True, text=True, timeout=100, check=True
    )
    assert float(ended.stdout) < 30
