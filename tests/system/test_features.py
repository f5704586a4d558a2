"""Each feature of an image, through the front door: converted by the command, mounted, compared with umoci's unpack, and by the kernel."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.corpus.features import FEATURES, Feature
from tests.corpus.oci import simple
from tests.system.both import seen_in_both_modes
from tests.system.compare import Snapshot, differences, snapshot
from tests.system.erofs_check import check_tree
from tests.system.world import World, require, tool


def unpacked(layout: Path, target: Path) -> Snapshot:
    """Unpack with umoci, and look."""
    tool("umoci", "raw", "unpack", "--image", f"{layout}:latest", target)
    return snapshot(target)


def without(tree: Snapshot, other: Snapshot, feature: Feature) -> Snapshot:
    """Take from ``other`` the fields in which umoci leaves its own mark."""
    return tree | {
        path: replace(tree[path], **{name: getattr(other[path], name) for name in names})
        for path, names in feature.ignore.items()
        if path in tree and path in other
    }


@pytest.mark.parametrize("name", FEATURES)
def test_feature(name: str, shared_world: World, tmp_path: Path) -> None:
    require("root", "owners and devices")
    require("fuse")
    feature = FEATURES[name]
    converted = shared_world.convert(f"oci:{simple(tmp_path / 'layout', *feature.layers)}", f"feature/{name}")
    seen = seen_in_both_modes(shared_world, f"feature/{name}", name)

    for path, fields in feature.expect.items():
        assert path in seen
        assert {field: getattr(seen[path], field) for field in fields} == dict(fields), path
    if feature.odd:
        assert sorted(seen) == sorted({b"", *feature.expect})
    else:
        require("umoci")
        reference = simple(tmp_path / "reference", *(feature.reference or feature.layers))
        theirs = without(unpacked(reference, tmp_path / "unpacked"), seen, feature)
        assert differences(theirs, seen) == []
    check_tree(shared_world, converted["manifest"], seen, tmp_path)
