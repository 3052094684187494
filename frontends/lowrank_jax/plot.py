"""Pictures of what an optimizer's `diagnostics` returned; needs Matplotlib."""

from lowrank_core.plot import columns, energy

__all__ = ["columns", "energy"]
