"""Where SD.Next keeps its own DeepCache; None: it is off."""

deepcache_worker = None
