"""Where the label enters a layer: as pixels of the image, or as a learned vector.

Both add g·E[y] to a row's pre-activation, E being one column of the weights a label. For the first layer
E is the weights' first L columns, which the image must leave dark: xWᵀ with the label's pixel set to s is
x₀Wᵀ + s·W[:, y]. So one product serves every label. For later layers E is a parameter of its own.
"""

from torch import Tensor


def clear_label_pixels(images_BI: Tensor, labels: int) -> Tensor:
    """Darkens the first `labels` pixels in place, where the label will be written."""
    images_BI[:, :labels] = 0
    return images_BI
