"""The subspace a gradient is projected on: choosing it, moving moments into it, and the way back."""
