"""The maps of `conv` and `local`: convolutions of oneDNN or cuDNN, and batched matrix products.

Maps lie channels last, which these libraries compute fastest, so flat rows need no copy. The convolution has no bias
and gets x without its norm; `pooling.py` adds both to the pooled map, which is smaller.

Shapes: N rows, I inputs, F units; H, W height and width before pooling, O channels; P places, K·K·C numbers in a
window.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Conv, Local, Shape, channels_of, maps_of
from ffstream.ff.maps import WEIGHT, MapResult
from ffstream.ff.pooling import Pooling


class ConvMap:
    """c = conv(x, W), z = pooled r·c + b; ∂L/∂W is the correlation of x with ∂L/∂c."""

    def __init__(self, options: Conv, input_shape: Shape) -> None:
        self._shape = input_shape
        self._stride, self._padding = [options.stride] * 2, [options.padding] * 2
        places = options.places(input_shape)
        self._pooling = Pooling(*places, options.channels, options.pool)
        rows_K, columns_K = (
            _over_input(options, size, count) for size, count in zip(input_shape[:2], places, strict=True)
        )
        over_padding_KK1 = ~(rows_K[:, None] & columns_K)[:, :, None]
        self._over_padding_KK1 = over_padding_KK1 if over_padding_KK1.any() else None

    def forward(
        self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Mapping[str, Tensor], buffers: Buffers
    ) -> MapResult:
        """z (N, F), and the places of the maxima."""
        weight_OCKK = weights[WEIGHT].permute(0, 3, 1, 2)
        c = torch.conv2d(maps_of(x_NI, self._shape), weight_OCKK, None, self._stride, self._padding)
        c_NHWO = c.permute(0, 2, 3, 1).contiguous()
        height, width, _ = self._pooling.pooled
        bias_F = weights["bias"].repeat(height * width)
        z_NF, at = self._pooling.forward(c_NHWO, inverse_norm_N, bias_F, buffers)
        return MapResult(z_NF, (at,))

    def gradients(
        self,
        e_NO: Tensor,
        saved: tuple[Tensor, ...],
        x_NI: Tensor,
        inverse_norm_N: Tensor,
        weights: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        buffers: Buffers,
    ) -> None:
        """∂L/∂W (O, K, K, C) and ∂L/∂b (O)."""
        into["bias"].copy_(e_NO.view(-1, len(into["bias"])).sum(0))
        d_NHWO = self._pooling.gradient(e_NO, saved[0], inverse_norm_N, x_NI, buffers)
        gradient_OCKK = torch.ops.aten.convolution_backward(
            d_NHWO.permute(0, 3, 1, 2),
            maps_of(x_NI, self._shape),
            weights[WEIGHT].permute(0, 3, 1, 2),
            None,
            self._stride,
            self._padding,
            [1, 1],
            False,
            [0, 0],
            1,
            [False, True, False],
        )[1]
        into[WEIGHT].copy_(gradient_OCKK.permute(0, 2, 3, 1))
        if self._over_padding_KK1 is not None:
            # In bfloat16, oneDNN leaves the gradient of these weights uninitialised.
            into[WEIGHT].masked_fill_(self._over_padding_KK1.to(e_NO.device), 0)


def _over_input(options: Conv, size: int, places: int) -> Tensor:
    """Which rows (or columns) of the kernel lie over the input, and not over the padding, at some place."""
    at_PK = (torch.arange(places) * options.stride - options.padding)[:, None] + torch.arange(options.kernel)
    return ((at_PK >= 0) & (at_PK < size)).any(0)


class LocalMap:
    """The windows of all rows at a place, times the weights of that place: a product for each of P places."""

    def __init__(self, options: Local, input_shape: Shape) -> None:
        self._options = options
        self._shape = input_shape
        self._height, self._width = options.places(input_shape)
        self._pooling = Pooling(self._height, self._width, options.channels, options.pool)

    def forward(
        self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Mapping[str, Tensor], buffers: Buffers
    ) -> MapResult:
        """z (N, F), the places of the maxima, and the windows (P, N, K·K·C)."""
        windows_PNK = self._windows(x_NI, buffers)
        places, rows, channels = len(windows_PNK), len(x_NI), self._options.channels
        product_PNO = buffers.get("product", x_NI, places * rows * channels).view(places, rows, channels)
        torch.bmm(windows_PNK, weights[WEIGHT].transpose(1, 2), out=product_PNO)
        c_NPO = buffers.get("map", x_NI, rows, places, channels).copy_(product_PNO.transpose(0, 1))
        c_NHWO = c_NPO.view(rows, self._height, self._width, channels)
        z_NF, at = self._pooling.forward(c_NHWO, inverse_norm_N, weights["bias"], buffers)
        return MapResult(z_NF, (at, windows_PNK))

    def _windows(self, x_NI: Tensor, buffers: Buffers) -> Tensor:
        """What each place is connected to (P, N, K·K·C)."""
        options, rows, channels = self._options, len(x_NI), channels_of(self._shape)
        x_NHWC = x_NI.view(rows, *self._shape[:2], channels)
        if width := options.padding:
            x_NHWC = torch.nn.functional.pad(x_NHWC, (0, 0, width, width, width, width))
        windows = x_NHWC.unfold(1, options.kernel, options.stride).unfold(2, options.kernel, options.stride)
        by_place = windows.permute(1, 2, 0, 4, 5, 3)
        return (
            buffers.get("windows", x_NI, by_place.numel())
            .view(by_place.shape)
            .copy_(by_place)
            .flatten(0, 1)
            .flatten(2)
        )

    def gradients(
        self,
        e_NO: Tensor,
        saved: tuple[Tensor, ...],
        x_NI: Tensor,
        inverse_norm_N: Tensor,
        weights: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        buffers: Buffers,
    ) -> None:
        """∂L/∂W (P, O, K·K·C) and ∂L/∂b (F)."""
        at, windows_PNK = saved
        into["bias"].copy_(e_NO.sum(0))
        d_NHWO = self._pooling.gradient(e_NO, at, inverse_norm_N, x_NI, buffers)
        d_PON = d_NHWO.flatten(1, 2).permute(1, 2, 0)
        product_PON = buffers.get("transposed", x_NI, d_PON.numel()).view(d_PON.shape).copy_(d_PON)
        if x_NI.dtype == into[WEIGHT].dtype:
            torch.bmm(product_PON, windows_PNK, out=into[WEIGHT])
        else:
            into[WEIGHT].copy_(
                torch.bmm(product_PON, windows_PNK, out=buffers.get("weight gradient", x_NI, *into[WEIGHT].shape))
            )
