"""Training: the plan of a run, its loop, its loader, its trainer and its record."""
