"""What was tried, with what came out of it: the history of attempts, and the loop in which the next one is tried."""
