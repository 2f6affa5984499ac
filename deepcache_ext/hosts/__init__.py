"""How each host begins and ends a pass and reaches its UNet: one file or folder a host."""
