"""What the user sees and writes: page, infotext."""
