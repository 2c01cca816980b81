"""The label of samples that have none."""

from typing import Final

UNLABELLED: Final = 65_535  # labels are 16 bits wide in messages and in the journal; a network knows at most 65,535
