"""The pixel decoder: a node's query to its foreground logit (Ke et al. 2022, §3.3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Inheritance", "PixelDecoder"]


class PixelDecoder(nn.Module):
    """Two-layer perceptron, query [..., width] → logit [...]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.classify = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, query: Tensor) -> Tensor:
        logit: Tensor = self.classify(F.relu(self.hidden(query)))
        return logit.squeeze(-1)


class Inheritance(nn.Module):
    """Query of a node beyond the 112 level: its parent's attended query, refined by the node's own cues.

    Full attention over the nodes of a 448 grid would cost more than all the rest together; what a child needs
    to know of the instance its parent has already gathered. The cost stays linear in the number of nodes.
    """

    def __init__(self, width: int, feedforward: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, own: Tensor, parent: Tensor) -> Tensor:
        """own, parent [..., width] → [..., width]."""
        x = own + parent
        return x + self.narrow(F.relu(self.widen(self.norm(x))))
