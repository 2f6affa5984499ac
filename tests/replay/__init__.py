"""Replays: recordings of real hosts played to the extension's own hooks, with real small U-Nets.

`recording` reads the files, `placement` works out which part of the latent each recorded call held, `models`
builds the U-Nets and what other extensions put on them, `fakehost` stands in for the host's `modules`,
`player` walks the events, `reference` says independently what each call should have given, `checker`
compares, `scenario` puts it together. Run them with `python -m tests.replay DIR`.
"""
