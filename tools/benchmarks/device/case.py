"""What every arrangement learns on a device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.ff.placement import Placement
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.device import choose_product_dtype


@dataclass(frozen=True)
class Case:
    """A network, a device, and one microbatch on the host: images (B, I) uint8 and labels (B)."""

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    images: Tensor
    labels: Tensor

    @classmethod
    def make(cls, widths: Sequence[int], batch: int, device: torch.device) -> "Case":
        """A case with random images."""
        recipe = make_recipe("fast", widths=list(widths), batch_size=batch, warmup_batch_size=batch, warmup_samples=0)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, recipe.inputs), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, recipe.labels, (batch,), generator=generator)
        return cls(recipe, device, choose_product_dtype("auto", device), images, labels)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of inputs, then the units of each layer."""
        return (self.recipe.inputs, *(layer.connection.output_shape(())[0] for layer in self.recipe.layers))

    def placement(self, buffers: int) -> Placement:
        """The placement of its layers."""
        return Placement(self.device, self.dtype, buffers)

    def synchronize(self) -> None:
        """Waits until the device has finished all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
