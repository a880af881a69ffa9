"""URLs, and requests to stores and web servers."""
