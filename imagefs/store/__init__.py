"""Where immutable blobs and refs live."""
