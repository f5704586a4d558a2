"""The `imagefs` command, one module a command group."""
