"""A plain model of layer application, and layers for hypothesis to compare it with.

The model keeps whole paths in one dictionary and looks at all of them for every question: slow, and with nothing remembered that could be
out of date. A hard-linked file is one ``Node`` under several paths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from imagefs.convert.entry import Content, Entry, Kind

Path = tuple[bytes, ...]
Tree = dict[Path, "Node"]

MARKERS: Final = (Kind.WHITEOUT, Kind.OPAQUE)


class Refused(Exception):  # noqa: N818  # reads as what it is
    """The layers have no one meaning."""


@dataclass(eq=False)
class Node:
    kind: Kind
    mode: int = 0o755
    owner: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    content: bytes = b""
    rdev: int = 0


def parts_of(path: bytes) -> Path:
    return tuple(path.split(b"/")) if path else ()


def below(path: Path, top: Path) -> bool:
    return len(path) > len(top) and path[: len(top)] == top


def follow(tree: Tree, path: Path) -> Path:
    """Return the place that ``path`` leads to when links in all of its parts are followed, inside the root."""
    done: list[bytes] = []
    todo = list(path)
    links = 0
    while todo:
        part = todo.pop(0)
        if part == b"..":
            done = done[:-1]
        elif part not in (b"", b"."):
            node = tree.get((*done, part))
            if node is not None and node.kind is Kind.SYMLINK:
                links += 1
                if links > 40:
                    raise Refused("links")
                if node.target.startswith(b"/"):
                    done = []
                todo = node.target.split(b"/") + todo
            else:
                done.append(part)
    return tuple(done)


def flatten(layers: Sequence[Sequence[Entry]]) -> Tree:
    tree: Tree = {(): Node(Kind.DIR)}
    for layer in layers:
        gone = hide(tree, layer)
        for position, entry in enumerate(layer):
            if entry.kind not in MARKERS:
                apply(tree, entry, position, gone)
    return tree


def accepted(layers: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """Return the layers without the entries that have no one meaning, so that generated ones get further."""
    tree: Tree = {(): Node(Kind.DIR)}
    result: list[list[Entry]] = []
    for layer in layers:
        kept = []
        try:
            gone = hide(tree, layer)
        except Refused:
            continue
        for position, entry in enumerate(layer):
            try:
                if entry.kind not in MARKERS:
                    apply(tree, entry, position, gone)
            except Refused:
                continue
            kept.append(entry)
        result.append(kept)
    return result


def hide(tree: Tree, layer: Sequence[Entry]) -> dict[Path, tuple[int, Node]]:
    """Take away what the layer's markers hide; return it by the path that the markers give it, with the marker's position."""
    lower = dict(tree)
    own = {parts_of(entry.path) for entry in layer if entry.kind not in (*MARKERS, Kind.SYMLINK)}
    gone: dict[Path, tuple[int, Node]] = {}
    for position, entry in enumerate(layer):
        if entry.kind not in MARKERS:
            continue
        path = parts_of(entry.path)
        directory = path if entry.kind is Kind.OPAQUE else path[:-1]
        prefixes = [directory[:count] for count in range(1, len(directory) + 1)]
        links = [prefix for prefix in prefixes if prefix in lower and lower[prefix].kind is Kind.SYMLINK]
        if links and links[0] in own:
            continue
        real = follow(lower, directory)
        for victim in lower:
            if (below(victim, real) and entry.kind is Kind.OPAQUE) or victim[: len(real) + 1] == (*real, path[-1] if path else b""):
                node = tree.pop(victim, None)
                if node is not None:
                    gone[directory + victim[len(real) :]] = (position, node)
    return gone


def make_parents(tree: Tree, path: Path) -> None:
    for count in range(len(path) + 1):
        node = tree.setdefault(path[:count], Node(Kind.DIR))
        if node.kind is not Kind.DIR:
            raise Refused("a file on the way")


def apply(tree: Tree, entry: Entry, position: int, gone: dict[Path, tuple[int, Node]]) -> None:
    path = parts_of(entry.path)
    parent = follow(tree, path[:-1])
    make_parents(tree, parent)
    place = (*parent, path[-1]) if path else ()
    new = Node(entry.kind, entry.mode, entry.uid, entry.mtime_ns, entry.link, content_of(entry), entry.rdev)
    if entry.kind is Kind.SYMLINK:
        new.mode = 0o777
    if entry.kind is Kind.HARDLINK:
        new = link_target(tree, entry, position, gone, place)
    old = tree.get(place)
    if old is not None and not (old.kind is Kind.DIR and new.kind is Kind.DIR):
        for victim in [victim for victim in tree if below(victim, place)]:
            del tree[victim]
    tree[place] = new


def link_target(tree: Tree, entry: Entry, position: int, gone: dict[Path, tuple[int, Node]], place: Path) -> Node:
    target = parts_of(entry.link)
    where = (*follow(tree, target[:-1]), target[-1]) if target else ()
    node = tree.get(where)
    if node is None:
        when, node = gone.get(target, (-1, None))
        if node is None or when < position:
            raise Refused("dangling")
    elif where[: len(place)] == place:
        raise Refused("itself")
    if node.kind is Kind.DIR:
        raise Refused("a directory")
    return node


def content_of(entry: Entry) -> bytes:
    return entry.content.inline or b"" if entry.content is not None else b""


# -- layers -------------------------------------------------------------------------------------------------------------------------------

_PARTS = st.sampled_from([b"a", b"b", b"c", b"l"])
PATHS = st.lists(_PARTS, min_size=1, max_size=4).map(b"/".join)
TARGETS = st.sampled_from([b"a", b"b", b"l", b"../a", b"/b", b"/a/b", b"..", b"/", b"c/../../a", b"no/where", b"./l/b", b"../../../c"])
KINDS = st.sampled_from(
    [Kind.FILE, Kind.FILE, Kind.DIR, Kind.DIR, Kind.DIR, Kind.SYMLINK, Kind.HARDLINK, Kind.FIFO, Kind.CHAR, Kind.WHITEOUT, Kind.OPAQUE]
)


@st.composite
def entries(draw: st.DrawFn, kinds: st.SearchStrategy[Kind] = KINDS, paths: st.SearchStrategy[bytes] = PATHS) -> Entry:
    kind = draw(kinds)
    path = draw(paths)
    if kind in MARKERS:
        return Entry(path, kind)
    serial = draw(st.integers(1, 500))
    entry = Entry(path, kind, 0o600 + serial % 64, serial, 0, serial * 1_000_000_000)
    if kind is Kind.FILE:
        data = b"%d" % serial
        entry.size = len(data)
        entry.content = Content(len(data), None, data)
    elif kind is Kind.SYMLINK:
        entry.link = draw(TARGETS)
    elif kind is Kind.HARDLINK:
        entry.link = draw(paths)
    elif kind is Kind.CHAR:
        entry.rdev = 0x105
    return entry


_ANY_LAYERS = st.lists(st.lists(entries(), max_size=10), min_size=1, max_size=4)
LAYERS = st.one_of(_ANY_LAYERS.map(accepted), _ANY_LAYERS)
