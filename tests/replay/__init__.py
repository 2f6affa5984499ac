"""Replays: recordings of real hosts played to the extension's own hooks, with real small UNets.

`reading` reads the files by what `forms` says of them, `recording` holds them, `placement` works out which part of
the latent each recorded call held, `models` builds the UNets and what other extensions put on them, `fakehost`
stands in for the host's `modules`, `player` walks the events and `caller` makes their calls under the eyes of `watch`,
`judge` is what they tell of it, `reference` says independently what each call should have given, `checker` compares,
`scenario` puts it together. `variants` makes recordings that nobody has seen. Run them with
`python -m tests.replay DIR`.
"""
