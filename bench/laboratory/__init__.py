"""Plans on the laboratory's networks, without a WebUI: `python -m bench.laboratory`."""
