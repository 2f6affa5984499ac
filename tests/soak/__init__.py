"""Long runs: a fault at every evaluation of every recording, and a thousand random generations.

`faults` drives the recordings (see `tests.replay`) and makes something go wrong in one call at a time; `naive` is an
independent DeepCache that stands on the UNet's forward; `generations` makes random pictures in the embedded host and
compares them with it. `python -m tests.soak` runs all of it, `make test` a seeded sample.
"""
