"""The golden image: what a conversion's bytes must be, on every machine and in every later version of the same format."""
