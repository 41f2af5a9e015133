"""The residual stream before some layers of a model, copied on its way: what an EAGLE-3 head guesses from."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class FeatureTaps:
    """`features` [T, layers × hidden]: of the forward pass that comes next, or came last. Used by one thread."""

    def __init__(self, layers: Sequence[int], hidden_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._places = [[place for place, tapped in enumerate(layers) if tapped == layer] for layer in range(max(layers) + 1)]
        self._size, self._width = hidden_size, len(layers) * hidden_size
        self._fixed = torch.empty(0, self._width, dtype=dtype, device=device)
        self.features = self._fixed

    def reserve(self, num_tokens: int) -> None:
        """Memory for `fixed`: for passes that are recorded in CUDA graphs, of so many tokens at most."""
        self._fixed = self._fixed.new_zeros(num_tokens, self._width)

    def fresh(self, num_tokens: int) -> torch.Tensor:
        """The next pass has memory of its own."""
        self.features = self._fixed.new_empty(num_tokens, self._width)
        return self.features

    def fixed(self, num_tokens: int) -> torch.Tensor:
        """The next pass, or the replay of one, leaves its features where every other one does."""
        self.features = self._fixed[:num_tokens]
        return self.features

    def take(self, layer: int, hidden: torch.Tensor) -> None:
        """`hidden` [T, hidden] goes into `layer`; it may be overwritten afterwards."""
        if layer < len(self._places):
            for place in self._places[layer]:
                self.features[:, place * self._size : (place + 1) * self._size].copy_(hidden)
