"""What a pass and a run did, in numbers and in words."""
