"""What one layer of a classifier computes for images.

Label-free rows: one for each image. In a label-conditioned network, the layers after the first have L rows for each
image, one with each label.

Shapes: B images, L labels, N rows, F units.
"""

import torch
from torch import Tensor

from ffstream.ff.formulas import Formulas, ForwardResult
from ffstream.ff.label_formulas import Weights


class LayerPass:
    """Goodness and activities of one layer. Use them before `passed_on`, which overwrites the preactivations."""

    def __init__(
        self, formulas: Formulas, weights: Weights, result: ForwardResult, labels_N: Tensor | None, *, expands: bool
    ) -> None:
        """`labels_N`: of label-conditioned rows, to which the label has been added. `expands`: whether the next layer
        gets a row for each label."""
        self.formulas = formulas
        self._weights = weights
        self._result = result
        self._labels_N = labels_N
        self._expands = expands

    def goodness(self) -> Tensor:
        """The goodness (B, L) of every label, or (B, 1) if the layer knows no label."""
        formulas, z_NF = self.formulas, self._result.z_NF
        if self._labels_N is not None:
            return formulas.label_formulas.by_row(z_NF).view(-1, formulas.labels)
        return formulas.label_formulas.by_label(z_NF, self._result.label_scale_N, self._weights)

    def activities(self, labels_B: Tensor) -> Tensor:
        """The activities (B, F) that the goodness of these labels is computed from, float32. They are the same for
        all labels if the layer divides its units among the labels, or knows no label."""
        formulas = self.formulas
        if self._labels_N is None:
            z_BF = formulas.conditioned(self._result, self._weights, labels_B)
        else:
            z_BLF = self._result.z_NF.view(len(labels_B), formulas.labels, -1)
            z_BF = z_BLF[torch.arange(len(labels_B), device=z_BLF.device), labels_B]
        return formulas.options.activation.value(z_BF)

    def passed_on(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The input of the next layer, and the labels of its rows if it has one for each label. Call it once."""
        formulas, z_NF, labels_N = self.formulas, self._result.z_NF, self._labels_N
        if self._expands and labels_N is None:
            z_NLF = formulas.label_formulas.expand(z_NF, self._result.label_scale_N, self._weights)
            labels_N = torch.arange(formulas.labels, device=z_NF.device).repeat(len(z_NF))
            z_NF = z_NLF.flatten(0, 1)
        out_NF = z_NF if z_NF.dtype == dtype else torch.empty_like(z_NF, dtype=dtype)
        return formulas.activities(z_NF, out_NF), labels_N
