"""The host's side of a service: from a class and a method to an answer, restored from a snapshot where one fits."""
