"""The tests. Unit tests mirror the package; ``tests/system`` goes through the front door: the command, real archives, real mounts."""
