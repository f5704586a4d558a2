"""The formats, pure and sync: bytes in, bytes out, no I/O. ``docs/format.md`` is their specification."""
