"""Which sample comes when (plan), its bytes (reader), its crop (augment), its pixels (decode), together (loader)."""
