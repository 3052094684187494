"""PyTorch's Muon as one optimizer for a whole model: it takes matrices alone, so AdamW steps the rest."""

from collections.abc import Callable, Mapping
from typing import Any

import lowrank_torch
import torch
from torch import nn
from torch.optim import Optimizer


class MuonWithAdamW(Optimizer):
    """`torch.optim.Muon` for hidden matrices, `torch.optim.AdamW` for everything else.

    Both work on the groups and the state of this one, so that a schedule or a checkpoint sees one optimizer.
    """

    def __init__(
        self, model: nn.Module, *, matrices: Mapping[str, Any], rest: Mapping[str, Any]
    ) -> None:
        groups = lowrank_torch.matrix_groups(model)
        hidden = [group["params"] for group in groups if group.get("algorithm") != "adamw"]
        others = [
            {key: value for key, value in group.items() if key != "algorithm"}
            for group in groups
            if group.get("algorithm") == "adamw"
        ]
        self.parts = (
            torch.optim.Muon([named for params in hidden for named in params], **matrices),
            torch.optim.AdamW(others, **rest),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and share what was loaded."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step all parameters."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss
