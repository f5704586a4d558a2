"""The engines that freeze processes and restore them, and the sandboxes in which the processes run."""
