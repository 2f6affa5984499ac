"""How each host begins and ends a pass and reaches its UNet: one file a host."""
