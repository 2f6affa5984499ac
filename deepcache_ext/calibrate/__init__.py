"""Plans found by trying them on the user's own model, and the files that keep them."""
