import pytest

from tests.support import assert_bounded

_PROGRAM = """
from ffstream.pipeline.device import choose_product_dtype

dtype = torch.bfloat16
{}
weight_OI = torch.ones(256, 128, dtype=dtype)

def learn(rows):
    x_BI = torch.ones(rows, 128, dtype=dtype)
    (x_BI @ weight_OI.t()).t() @ x_BI

for rows in range(1, 101):
    learn(rows)
begin()
for rows in range(101, 301):
    learn(rows)
"""


@pytest.mark.timeout(600)
def test_products_of_any_number_of_rows_do_not_pile_up() -> None:
    assert_bounded(_PROGRAM, 'choose_product_dtype("bf16", torch.device("cpu"))', "")
