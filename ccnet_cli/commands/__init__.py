"""What each command does: one file and one public function for each."""
