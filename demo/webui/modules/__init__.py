"""The package an extension knows as `modules`: A1111's names, as much of them as this host needs."""
