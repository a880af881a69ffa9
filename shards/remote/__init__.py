"""URLs, and requests to object stores and web servers."""
