"""The run folder, its checkpoints and the safe reader of torch files."""
