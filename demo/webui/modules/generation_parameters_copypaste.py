"""The older name of `infotext_utils`."""

from modules.infotext_utils import *  # noqa: F403
from modules.infotext_utils import PasteField, parse_generation_parameters, register_paste_params_button

__all__ = ["PasteField", "parse_generation_parameters", "register_paste_params_button"]
