"""From a file to a network: layouts, loading, demo weights."""
