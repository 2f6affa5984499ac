"""The embedded WebUI: a miniature A1111 that runs this extension where the real host cannot run."""
