"""Evidence: what caching costs and gains, measured on the real UNet classes. Run with `python -m bench`."""
