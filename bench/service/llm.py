"""The service that the bench of snapshots freezes: PyTorch, transformers, and a language model of 300 MB with random, seeded weights."""

from importlib import import_module
from typing import Any

from snapshotstore import App, enter, method

app = App("bench-llm")

LAYERS = 5
WIDTH = 768


@app.cls(image="llm:1", enable_memory_snapshot=True, preload=("torch", "transformers"))
class Service:
    """Answers with the next token."""

    @enter(snap=True)
    def load(self) -> None:
        """Import, and make the model: 74 million weights of four bytes."""
        # They are the image's: whoever calls need not have them.
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")

        torch.manual_seed(7)
        torch.set_num_threads(1)
        self.torch = torch
        config = transformers.GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=12)
        self.model: Any = transformers.GPT2LMHeadModel(config).eval()

    @method()
    def answer(self, tokens: list[int]) -> int:
        """Return the token that follows ``tokens``."""
        with self.torch.no_grad():
            return int(self.model(self.torch.tensor([tokens])).logits[0, -1].argmax())
