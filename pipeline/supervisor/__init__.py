"""Keep a run going: restart its launcher when it fails, and end processes that a failed start left behind."""
