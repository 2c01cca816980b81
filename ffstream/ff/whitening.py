"""Patch whitening: fixed filters that decorrelate the numbers of a patch, fitted to the first images of the stream.

    C = E[u uᵀ] = V Λ Vᵀ over patches u (k·k·c numbers) of centred images
    filters = (Λ + ε max Λ)^(−½) Vᵀ             one for each principal component, which becomes a channel

Local learning has no gradient from above that would undo what strong correlations between neighbouring pixels do to
the first layer. Until enough images are seen, each microbatch fits the filters again; then they never change.

Shapes: B samples, I inputs, images (B, H, W, c), K = k·k·c numbers in a patch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, unfold

from ffstream.ff.connection import Shape, channels_of, maps_of
from ffstream.ff.input import Centering
from ffstream.ff.preprocessing import Whitening

_ROWS = 64  # images whose patches are held in memory at once


class PatchWhitening:
    """conv(pixels − mean, filters), with zeros around the image. The mean is over all images seen so far."""

    def __init__(self, options: Whitening, image_shape: Shape, device: torch.device) -> None:
        self._options = options
        self._shape = image_shape
        self._centering = Centering(options, image_shape, device)
        size = options.patch**2 * channels_of(image_shape)
        self._products_KK = torch.zeros(
            size, size, device=device
        )  # Σ u uᵀ of the images that the filters are fitted to
        self._fitted = 0
        self._filters_KK = torch.eye(size, device=device)

    def fit(self, pixels_BI: Tensor, replicas: int = 1) -> None:
        """Moves the mean, and fits the filters unless they are final."""
        self._centering.fit(pixels_BI, replicas)
        missing = self._options.images - self._fitted
        if missing <= 0:
            return
        used_BI = pixels_BI[:missing] - self._centering.weights()["mean"]
        for rows in used_BI.split(_ROWS):
            patches_K = unfold(maps_of(rows, self._shape), self._options.patch).transpose(1, 2).flatten(0, 1)
            self._products_KK.addmm_(patches_K.t(), patches_K)
        self._fitted += len(used_BI)
        self._filters_KK.copy_(self._filters())

    def _filters(self) -> Tensor:
        # In float64 on the CPU, so that the filters do not depend on the device more than the images do.
        values_K, vectors_KK = torch.linalg.eigh(self._products_KK.double().cpu())
        if values_K.max() <= 0:  # equal images, or a single one: nothing to fit to yet
            return torch.eye(len(values_K), dtype=values_K.dtype)
        scale_K = (values_K + self._options.floor * values_K.max()).rsqrt() * self._count() ** 0.5
        # The sign of an eigenvector is arbitrary: its largest component is made positive.
        largest_K = vectors_KK.gather(0, vectors_KK.abs().argmax(0, keepdim=True))[0]
        filters_KK: Tensor = (vectors_KK * (scale_K * largest_K.sign())).t()
        return filters_KK

    def _count(self) -> int:
        """The number of patches in the sum."""
        height, width = (size - self._options.patch + 1 for size in self._shape[:2])
        return self._fitted * height * width

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Whitened images (B, H·W·K), channels last."""
        centred_BI = self._centering.apply(pixels_BI, weights)
        patch = self._options.patch
        maps = conv2d(maps_of(centred_BI, self._shape), _kernel(weights["filters"], patch), padding=patch // 2)
        return maps.permute(0, 2, 3, 1).flatten(1)

    def to_pixels(self, fields_NHWC: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Each weight times its filter, added up where the patches overlap. Fields are larger by patch − 1 then, but
        not larger than the image: a patch reaches over its edge into zeros."""
        patch, fields = self._options.patch, fields_NHWC.permute(0, 3, 1, 2)
        pixels = conv_transpose2d(fields, _kernel(weights["filters"], patch)).permute(0, 2, 3, 1)
        cut = [patch // 2 * (size > most) for size, most in zip(pixels.shape[1:3], self._shape[:2], strict=True)]
        return pixels[:, cut[0] : pixels.shape[1] - cut[0], cut[1] : pixels.shape[2] - cut[1]]

    def weights(self) -> dict[str, Tensor]:
        """`mean` (I) and `filters` (K, K)."""
        return self._centering.weights() | {"filters": self._filters_KK}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the weights, of the sums that the filters are fitted to, and of the counts."""
        return self._centering.state_dict() | {
            "filters": self._filters_KK.clone(),
            "products": self._products_KK.clone(),
            "fitted": torch.tensor(self._fitted),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._centering.load_state_dict(state)
        self._filters_KK.copy_(state["filters"])
        self._products_KK.copy_(state["products"])
        self._fitted = int(state["fitted"])

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Keeps the filters, because the layers' weights were learned with them. The mean starts over."""
        self._centering.load_weights(weights)
        self._filters_KK.copy_(weights["filters"])
        self._fitted = self._options.images


def _kernel(filters_KK: Tensor, patch: int) -> Tensor:
    """(K, c, k, k): a convolution that applies the filters to each patch."""
    return filters_KK.view(len(filters_KK), -1, patch, patch)
