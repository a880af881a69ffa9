"""Keep a run going: start its launcher again when it fails, and end what a failed start left behind."""
