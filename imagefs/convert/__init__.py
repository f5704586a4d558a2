"""A source becomes an image: read, flatten, pack, publish."""
