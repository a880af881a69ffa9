"""Encoded images to pixels on the device."""
