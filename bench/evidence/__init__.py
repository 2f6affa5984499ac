"""Evidence: what DeepCache costs in likeness and gains in speed, over many pictures of one checkpoint."""
