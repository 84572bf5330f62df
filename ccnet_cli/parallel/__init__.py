"""Several processes: the group, and the supervisor that starts them."""
