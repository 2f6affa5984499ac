"""A miniature host: the package `modules` as extensions see it, real U-Nets and samplers, random weights."""
