"""What things cost: one file per table, all timed and weighed by `measure`."""
