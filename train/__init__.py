"""Trains the demo's small text-to-image checkpoint from scratch: `python -m train`."""
