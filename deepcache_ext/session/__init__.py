"""One pass: the clock ticks, the UNet's calls are cached by the plan, a report comes out."""
