"""How fast one model's kept features age: measured on its own pictures, and the files that keep it."""
