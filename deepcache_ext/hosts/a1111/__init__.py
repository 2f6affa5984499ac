"""AUTOMATIC1111, and what its relatives share with it."""
