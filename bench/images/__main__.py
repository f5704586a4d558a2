"""``python -m bench.images NAME…``: make images, and say where their archives are."""

import argparse
import sys

from bench import images

MAKERS = {
    "numpy": images.numpy,
    "torch": images.torch,
    "torch-new-layer": images.torch_new_layer,
    "torch-new-content": images.torch_new_content,
    "storm": images.storm,
    "transformers": images.transformers,
    "weights": images.weights,
    "libraries": images.libraries,
    "node": images.node,
    "readers": images.readers,
}


def main() -> None:
    """Make the images that are named."""
    parser = argparse.ArgumentParser(prog="python -m bench.images", description=__doc__)
    parser.add_argument("names", nargs="+", choices=MAKERS)
    for name in parser.parse_args().names:
        sys.stdout.write(f"{MAKERS[name]().archive}\n")


if __name__ == "__main__":
    main()
