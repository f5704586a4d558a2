"""The host tiers, and fetching between them."""
