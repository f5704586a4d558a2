"""ImageFS: container images that mount at once and load lazily, content-addressed."""

__version__ = "0.1.0"
