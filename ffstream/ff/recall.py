"""Fast weights: what a layer recalls about inputs like the one that it sees. `ff/fast_weights.py` has the formulas.

Learning reads row i of a microbatch with everything that came before it, the rows before it included:

    m_i = λⁱ A k_i + Σ_{j<i} λ^(i−1−j) (k_j · k_i) v_j

A prediction reads A as it is, as the first row of a microbatch does. Replayed rows are read after all fresh ones, and
change nothing.

The state is `values`, which is A (L, K), and `mean`, which is x̄ (I). Predictions need all of it. It is valid if and
only if it was taken between two microbatches.

Shapes: N rows, I inputs, K numbers of a key, L labels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ffstream.ff.activities import Activities
from ffstream.ff.fast_weights import Remembering
from ffstream.ff.randomness import generator_for

VALUES, MEAN = "values", "mean"
State = Mapping[str, Tensor]


def extended(options: Remembering, x_NI: Tensor, state: State) -> Tensor:
    """[x, m] (N, I + L) in the dtype of x, with the memory as it is: for rows that are predicted."""
    return _beside(x_NI, _keys(options, x_NI, state) @ state[VALUES].t())


def _keys(options: Remembering, x_NI: Tensor, state: State) -> Tensor:
    """k (N, K), float32."""
    if not options.has_keys:
        return torch.ones(len(x_NI), 1, device=x_NI.device)
    centred_NI = x_NI.float() - state[MEAN]
    length_N1: Tensor = torch.linalg.vector_norm(centred_NI, dim=1, keepdim=True)
    return centred_NI / (length_N1 + 1e-6)


def _beside(x_NI: Tensor, m_NL: Tensor) -> Tensor:
    """[x, m], with m scaled to the root mean square of x."""
    squares_N1 = x_NI.float().square().mean(1, keepdim=True)
    scale_N1 = (squares_N1 / (m_NL.square().mean(1, keepdim=True) + 1e-12)).sqrt_()
    return torch.cat((x_NI, (m_NL * scale_N1).to(x_NI.dtype)), 1)


class Recall:
    """The fast weights of one layer. `state` is everything that later reads depend on. Not a copy."""

    def __init__(self, options: Remembering, inputs: int, labels: int, seed: int, device: torch.device) -> None:
        self._options, self._labels = options, labels
        values_LK = torch.zeros(labels, inputs if options.has_keys else 1)
        if not options.learns:
            values_LK.normal_(generator=generator_for("fast weights", seed, inputs))
        self.state: dict[str, Tensor] = {
            VALUES: values_LK.to(device, copy=True),
            MEAN: torch.zeros(inputs, device=device),
        }

    def forward(self, input: Activities) -> Tensor:
        """[x, m] (N, I + L) in the dtype of x, for a microbatch to learn, which `update` then takes in."""
        x_NI, fresh = input.h_NF, input.fresh
        keys_NK = _keys(self._options, x_NI, self.state)
        self._fresh_BI, self._keys_BK = x_NI[:fresh], keys_NK[:fresh]
        self._values_BL = one_hot(input.labels_N[:fresh], self._labels) - 1 / self._labels
        # One of several replicas stands for the samples of all.
        self._decay = self._options.decay**input.replicas
        self._mean_rate = 1 - (1 - self._options.mean_rate) ** input.replicas
        return _beside(x_NI, self._recalled(keys_NK) if self._options.learns else keys_NK @ self.state[VALUES].t())

    def update(self) -> None:
        """Takes in the fresh rows of the last microbatch, in their order."""
        if not len(self._fresh_BI):
            return
        if self._options.learns:
            weight_B = self._powers(len(self._fresh_BI)).flip(0)
            written_LK = (self._values_BL * weight_B[:, None]).t() @ self._keys_BK
            self.state[VALUES].mul_(self._decay ** len(self._fresh_BI)).add_(written_LK)
        self.state[MEAN].lerp_(self._fresh_BI.float().mean(0), self._mean_rate)

    def _recalled(self, keys_NK: Tensor) -> Tensor:
        """m (N, L): of the state, and of the fresh rows before each row."""
        fresh, count = len(self._keys_BK), len(keys_NK)
        age_N = torch.arange(count, device=keys_NK.device).clamp_(max=fresh)
        ages_NB = age_N[:, None] - 1 - torch.arange(fresh, device=keys_NK.device)
        decays_NB = (
            self._powers(fresh)[ages_NB.clamp(min=0)].masked_fill_(ages_NB < 0, 0.0) if fresh else ages_NB.float()
        )
        within_NL = (keys_NK @ self._keys_BK.t()).mul_(decays_NB) @ self._values_BL
        return (keys_NK @ self.state[VALUES].t()).mul_(self._powers(fresh + 1)[age_N][:, None]).add_(within_NL)

    def _powers(self, count: int) -> Tensor:
        """λ⁰ to λ^(count−1)."""
        exponents = torch.arange(count, dtype=torch.float32, device=self.state[MEAN].device)
        return torch.pow(self._decay, exponents)
