"""The process that serves mounts, and how to talk to it."""
