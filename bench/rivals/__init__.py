"""Other ways to make a picture sooner, each written small from its paper: `python -m bench.rivals`."""
