"""Benches, the demonstration, and the images that both use."""
