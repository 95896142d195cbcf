"""A small network for points: of one time or of two, with or without a label."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition

FREQUENCIES = 4


@dataclass(frozen=True, kw_only=True)
class PointNetworkConfig:
    """Sizes of a ``PointNetwork``; ``labels`` is the number of classes it is told apart, 0 for none."""

    width: int = 128
    layers: int = 3
    labels: int = 0
    two_times: bool = False


class PointNetwork(nn.Module):
    """Velocity at a point of the plane and a time; a perceptron on the point and a few sines of the time.

    With ``two_times`` it also takes r and predicts the average velocity from t to r; weights of the network
    of one time fit into it (``with_two_times``).
    """

    def __init__(self, config: PointNetworkConfig) -> None:
        super().__init__()
        self.config = config
        inputs = 2 + config.labels + (2 * FREQUENCIES + 1) * (2 if config.two_times else 1)
        layers: list[nn.Module] = []
        for number in range(config.layers):
            layers += [nn.Linear(config.width if number else inputs, config.width), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(config.width, 2)

    def forward(
        self,
        x_t: Float[Tensor, " batch 2"],
        t: Float[Tensor, " batch"],
        condition: Condition,
        r: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch 2"]:
        return self.head(self._hidden(x_t, t, condition, r))

    def features(
        self, x_t: Float[Tensor, " batch 2"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch width"]:
        """The last hidden layer, for discriminators."""
        return self._hidden(x_t, t, condition, None)

    def _hidden(self, x_t: Tensor, t: Tensor, condition: Condition, r: Tensor | None) -> Tensor:
        parts = [x_t, _waves(t)]
        if self.config.two_times:
            parts.append(_waves(t - (t if r is None else r)))
        if self.config.labels:
            assert isinstance(condition, Tensor)
            parts.append(nn.functional.one_hot(condition.long(), self.config.labels).to(x_t.dtype))
        return self.body(torch.cat(parts, dim=1))


def with_two_times(network: PointNetwork) -> PointNetwork:
    """A copy that also takes r, and at first does not care about it."""
    config = network.config
    copy = PointNetwork(
        PointNetworkConfig(width=config.width, layers=config.layers, labels=config.labels, two_times=True)
    )
    state = network.state_dict()
    first = state["body.0.weight"]
    split = 2 + 2 * FREQUENCIES + 1
    silent = first.new_zeros(len(first), 2 * FREQUENCIES + 1)
    state["body.0.weight"] = torch.cat([first[:, :split], silent, first[:, split:]], dim=1)
    copy.load_state_dict(state)
    return copy


def _waves(t: Tensor) -> Float[Tensor, " batch 9"]:
    angles = t[:, None] * (torch.pi / 2) * 2.0 ** torch.arange(FREQUENCIES, dtype=t.dtype, device=t.device)
    return torch.cat([t[:, None], angles.sin(), angles.cos()], dim=1)
