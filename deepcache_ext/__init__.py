"""DeepCache for Stable Diffusion WebUIs: run the whole U-Net at some evaluations, its shallow part at the others.

Method: Ma, Fang, Wang, "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858.

The engine (settings, plan, estimators, ladder, slots, session, report) needs torch alone; `hosts` knows the
WebUIs and `interface` their pages. For Python programs: `DeepCache` and `DeepCacheSDHelper`.
"""

from .python_api import DeepCache, DeepCacheSDHelper
from .settings import SettingsError

__all__ = ["DeepCache", "DeepCacheSDHelper", "SettingsError"]

__version__ = "0.1.0"
