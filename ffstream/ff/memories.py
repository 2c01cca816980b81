"""What a layer remembers of its activities, so that it can dream without its input.

`StoreMemory`: a ring of the newest samples' activities h, labels and sorted grey values v. A draw mixes two of them,
i and j, which have the same label if labels are known (or takes one: i = j). Without labels, the samples of one draw
are the newest ones, each once.

    h = m · h_i + (1 − m) · h_j        v = ½ (v_i + v_j)

m is 0 or 1: for each unit at random, or, if the layer has a map, for areas of it (`Hybrid.masks`).

`StatisticsMemory`: for each label running means μ of h and of v, and a sketch S (R, F) of the covariance. With d the
deviations of a microbatch's n samples from μ, and Ω (R, n) standard normal:

    S ← √(1−ρ) S + √(ρ/n) Ω d          so that E[SᵀS] / R is the running covariance
    h = max(0, μ + εS/√R)              ε (R) standard normal: h has that mean and covariance before the cut

(Random projections that are linear in the data can be updated in a stream: Woodruff 2014, "Sketching as a tool for
numerical linear algebra".) Each row of S is a random sum over very many samples.

Samples without a label count as label 0; a network that learns without labels has no other.

Shapes: B samples, M samples in the store, F units, L labels, V grey values (0 in layers above the first), R rank.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ffstream.ff.connection import Shape, size_of
from ffstream.ff.decoder import Statistics, Store
from ffstream.ff.image_negatives import Hybrid

_SHOWN = 256  # samples of a store that are part of a snapshot


class Sizes(NamedTuple):
    """Of a layer: the shape of its output, how many labels it tells apart, and grey values of an image."""

    shape: Shape
    labels: int
    values: int


class Remembered(NamedTuple):
    """Activities (B, F), labels (B) and sorted grey values (B, V)."""

    h_BF: Tensor
    labels_B: Tensor
    values_BV: Tensor


class ActivityMemory(Protocol):
    """The memory of one layer. `state` holds, by name, everything that later draws depend on. Not a copy."""

    state: Mapping[str, Tensor]

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be drawn yet."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The part of the state that is in a snapshot, to show dreams. Not a copy."""
        ...

    def add(self, seen: Remembered, generator: torch.Generator) -> None:
        """Remembers the samples of a microbatch."""
        ...

    def draw(
        self, labels_B: Tensor | None, count: int, generator: torch.Generator, *, mixed: bool = True
    ) -> Remembered:
        """Activities to begin `count` dreams with: of these labels, or of labels as frequent as in the stream."""
        ...


class StoreMemory:
    """The newest samples."""

    def __init__(self, options: Store, sizes: Sizes, device: torch.device) -> None:
        self._options, self._sizes, self._device = options, sizes, device
        size, units = options.samples, size_of(sizes.shape)
        self._h_MF = torch.zeros(size, units, device=device)
        self._labels_M = torch.zeros(size, dtype=torch.int64, device=device)
        self._values_MV = torch.zeros(size, sizes.values, device=device)
        self._added = torch.zeros((), dtype=torch.int64)
        self.state = {"h": self._h_MF, "labels": self._labels_M, "values": self._values_MV, "added": self._added}

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be drawn yet."""
        return int(self._added) == 0

    def weights(self) -> Mapping[str, Tensor]:
        """Some of the samples: snapshots are sent to prediction replicas."""
        return {
            name: value[:_SHOWN] if value.dim() else value.clamp(max=_SHOWN) for name, value in self.state.items()
        }

    def add(self, seen: Remembered, generator: torch.Generator) -> None:
        """Stores the samples in place of the oldest ones."""
        capacity = len(self._h_MF)
        h_BF, labels_B, values_BV = (each[-capacity:] for each in seen)
        at_B = torch.arange(int(self._added), int(self._added) + len(h_BF)).remainder_(capacity).to(self._device)
        self._h_MF[at_B], self._labels_M[at_B], self._values_MV[at_B] = h_BF, labels_B, values_BV
        self._added += len(h_BF)

    def draw(
        self, labels_B: Tensor | None, count: int, generator: torch.Generator, *, mixed: bool = True
    ) -> Remembered:
        """Mixtures of two stored samples, or stored samples."""
        known_M = self._labels_M[: min(int(self._added), len(self._h_MF))].cpu()
        first_B, second_B = self._choose(known_M, labels_B, count, generator)
        first_B, second_B = first_B.to(self._device), second_B.to(self._device)
        if not mixed:
            return Remembered(self._h_MF[first_B], self._labels_M[first_B], self._values_MV[first_B])
        mask_BF = _masks(self._sizes.shape, self._options.blurs, count, generator).to(self._device)
        return Remembered(
            self._h_MF[second_B].lerp_(self._h_MF[first_B], mask_BF),
            self._labels_M[first_B],
            self._values_MV[second_B].lerp_(self._values_MV[first_B], 0.5),
        )

    def _choose(
        self, known_M: Tensor, labels_B: Tensor | None, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Two samples (B) of the same label for each dream. If no sample has the label, any may be the first."""
        if labels_B is None and self._sizes.labels == 1 and 1 < count <= len(known_M):
            return self._newest(count, generator)
        by_label_M = known_M.argsort(stable=True)
        counts_L = known_M.bincount(minlength=self._sizes.labels)
        starts_L = counts_L.cumsum(0) - counts_L
        chance_2B = torch.rand(2, count, dtype=torch.float64, generator=generator)

        def choose(chance_B: Tensor, starts_B: Tensor, counts_B: Tensor) -> Tensor:
            return by_label_M[starts_B + (chance_B * counts_B).long()]

        starts_B, counts_B = torch.zeros(count, dtype=torch.int64), torch.full((count,), len(known_M))
        if labels_B is not None:
            known_B = counts_L[labels_B] > 0
            starts_B = starts_L[labels_B].where(known_B, starts_B)
            counts_B = counts_L[labels_B].where(known_B, counts_B)
        first_B = choose(chance_2B[0], starts_B, counts_B)
        own_B = known_M[first_B]
        return first_B, choose(chance_2B[1], starts_L[own_B], counts_L[own_B])

    def _newest(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The newest samples, each once as the first one and once as the second: layers that learn from dreams only
        then see every sample of the stream, and none more often than others."""
        age_B = torch.randperm(count, generator=generator)
        at_B = (int(self._added) - 1 - age_B).remainder(len(self._h_MF))
        return at_B, at_B.roll(1)


class StatisticsMemory:
    """Running means, and a sketch of the covariance, of each label."""

    def __init__(self, options: Statistics, sizes: Sizes, device: torch.device) -> None:
        self._options, self._shape, self._device = options, sizes.shape, device
        labels, units = sizes.labels, size_of(sizes.shape)
        self._mean_LF = torch.zeros(labels, units, device=device)
        self._sketch_LRF = torch.zeros(labels, options.rank, units, device=device)
        self._values_LV = torch.zeros(labels, sizes.values, device=device)
        self._seen_L = torch.zeros(labels, dtype=torch.float64)
        self.state = {
            "mean": self._mean_LF,
            "sketch": self._sketch_LRF,
            "values": self._values_LV,
            "counts": self._seen_L,
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be drawn yet."""
        return not bool(self._seen_L.any())

    def weights(self) -> Mapping[str, Tensor]:
        """All of the state."""
        return self.state

    def add(self, seen: Remembered, generator: torch.Generator) -> None:
        """Moves the statistics toward those of the microbatch."""
        labels_B = seen.labels_B.cpu()
        for label in labels_B.unique().tolist():
            at_N = (labels_B == label).nonzero()[:, 0]
            sketch_RN = torch.randn(self._options.rank, len(at_N), generator=generator).to(self._device)
            self._add(label, seen, at_N.to(self._device), sketch_RN, len(at_N) / len(labels_B))

    def _add(self, label: int, seen: Remembered, at_N: Tensor, sketch_RN: Tensor, share: float) -> None:
        count = len(at_N)
        self._seen_L[label] += count
        # The rate is that of a microbatch in which the labels are equally frequent.
        rate = max(count / float(self._seen_L[label]), 1 - (1 - self._options.rate) ** (share * len(self._seen_L)))
        h_NF = seen.h_BF[at_N]
        self._mean_LF[label].lerp_(h_NF.mean(0), rate)
        self._values_LV[label].lerp_(seen.values_BV[at_N].mean(0), rate)
        deviation_RF = sketch_RN @ (h_NF - self._mean_LF[label])
        self._sketch_LRF[label].mul_((1 - rate) ** 0.5).add_(deviation_RF, alpha=(rate / count) ** 0.5)

    def draw(
        self, labels_B: Tensor | None, count: int, generator: torch.Generator, *, mixed: bool = True
    ) -> Remembered:
        """Normally distributed activities, cut at 0. In a network without labels, mixtures of two of them."""
        if labels_B is None:
            labels_B = torch.multinomial(self._seen_L, count, replacement=True, generator=generator)
        h_BF = self._normal(labels_B, generator)
        if mixed and len(self._seen_L) == 1:
            mask_BF = _masks(self._shape, self._options.blurs, count, generator).to(self._device)
            h_BF = self._normal(labels_B, generator).lerp_(h_BF, mask_BF)
        labels_B = labels_B.to(self._device)
        return Remembered(h_BF, labels_B, self._values_LV[labels_B])

    def _normal(self, labels_B: Tensor, generator: torch.Generator) -> Tensor:
        """Activities (B, F) of these labels (on the CPU)."""
        noise_BR = torch.randn(len(labels_B), self._options.rank, generator=generator).to(self._device)
        h_BF = torch.empty(len(labels_B), self._mean_LF.shape[1], device=self._device)
        for label in labels_B.unique().tolist():
            at_N = (labels_B == label).nonzero()[:, 0].to(self._device)
            spread_NF = noise_BR[at_N] @ self._sketch_LRF[label]
            h_BF[at_N] = (self._mean_LF[label] + spread_NF / self._options.rank**0.5).relu_()
        return h_BF


def _masks(shape: Shape, blurs: int, count: int, generator: torch.Generator) -> Tensor:
    """0 or 1 for each unit (B, F): at random, or, if the units have places on a map, by areas of it."""
    if len(shape) != 3 or size_of(shape[:2]) == 1:
        return torch.rand(count, size_of(shape), generator=generator).round_()
    height, width, channels = shape
    masks_BHW = Hybrid(blurs=blurs).masks(count, height, width, lambda shape: torch.rand(shape, generator=generator))
    return masks_BHW[..., None].expand(-1, -1, -1, channels).reshape(count, -1)
