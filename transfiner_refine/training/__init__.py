"""Training of native refiners: data, simulated coarse masks, losses, the loop."""
