"""What is mounted where, and the mount calls."""
