"""From settings to a plan: which evaluations run how much of the UNet, what stands in between, and what that costs."""
