"""Small networks of different kinds, on which rules are chosen and judged: `python -m train.laboratory`."""
