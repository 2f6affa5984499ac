"""By this package extensions tell Forge. What it holds: the model behind `sd_model.forge_objects.unet`."""
