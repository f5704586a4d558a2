"""The FUSE face of a mounted image: the only importers of pyfuse3."""
