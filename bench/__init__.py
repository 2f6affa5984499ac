"""Evidence: what caching costs and gains, measured on the real UNet classes. Run with `python -m bench`."""

import time

STARTED = time.monotonic()
"""Before torch was imported, which can take half a minute on a new machine."""
