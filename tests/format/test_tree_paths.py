"""By which path an object is in an image: what a walk through the tree's model says."""

from hypothesis import HealthCheck, given, settings

from imagefs.digest import digest_of
from imagefs.format.erofs_reader import Tree
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from imagefs.format.tree_paths import object_paths
from tests.format.inode_strategies import inode_trees, walk


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(inode_trees())
def test_each_object_is_found_by_a_path_that_has_it(root: Inode) -> None:
    objects: dict[bytes, set[bytes]] = {}
    for path, inode in walk(root):
        if inode.object is not None:
            objects.setdefault(inode.object, set()).add(b"/" + path.lstrip(b"/"))
    found = object_paths(Tree(write_tree(root)), [*objects, digest_of(b"not in the image")])
    assert found.keys() == objects.keys()
    for digest, path in found.items():
        assert path in objects[digest]


def test_only_what_is_wanted_is_looked_for_and_the_first_path_is_told() -> None:
    one, two = digest_of(b"one"), digest_of(b"two")

    def file(digest: bytes) -> Inode:
        return Inode(0o100644, size=1000, object=digest)

    root = Inode(0o40755, children={b"b": Inode(0o40755, children={b"x": file(one), b"y": file(two)}), b"a": file(one), b"c": file(two)})
    tree = Tree(write_tree(root))
    assert object_paths(tree, [one]) == {one: b"/a"}
    assert object_paths(tree, [two, one])[one] == b"/a"
    assert object_paths(tree, []) == {}
