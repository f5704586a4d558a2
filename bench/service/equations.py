"""The service that the demonstration freezes: NumPy, and a matrix that takes a moment."""

from importlib import import_module
from typing import Any

from snapshotstore import App, enter, method

app = App("demo")


@app.cls(image="demo:latest", enable_memory_snapshot=True)
class Equations:
    """Solves equations with one matrix, for whatever right side."""

    @enter(snap=True)
    def prepare(self) -> None:
        """Import NumPy, and make and invert the matrix: once, and in the snapshot."""
        # It is the image's: whoever calls need not have it.
        self.numpy: Any = import_module("numpy")
        matrix = self.numpy.random.default_rng(1).random((600, 600))
        self.inverse: Any = self.numpy.linalg.inv(matrix)

    @method()
    def solve(self, right: float) -> float:
        """Return the first unknown where each right side is ``right``."""
        return float((self.inverse @ self.numpy.full(600, right))[0])
