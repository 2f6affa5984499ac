"""A miniature host: the package `modules` as extensions see it, real UNets and samplers, random weights."""
