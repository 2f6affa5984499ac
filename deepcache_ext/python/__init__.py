"""For Python programs: `DeepCache` and `DeepCacheSDHelper`, and the clock of UNets whose host announces nothing."""
