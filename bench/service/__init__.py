"""What the bench of snapshots runs in sandboxes."""
