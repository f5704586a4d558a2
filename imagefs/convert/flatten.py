"""Layers become one tree, by the OCI rules.

The rules, for each layer from the bottom up:

1. Its whiteouts and opaque markers act first, whatever their place in the layer, on what the layers below left; never on its own
   entries.
2. Its entries act in order. A directory on a directory keeps the children and takes the new metadata; any other pair replaces what
   was there, children included. A later entry for the same path wins.
3. Parents that no entry names are made: 0755, root's, at time 0.
4. A symbolic link on the way to a path is followed *inside the image*: absolute targets start at its root and ``..`` stops there. What a
   link points to need not exist: it is made. The last part of a path is never followed.
5. A hard link is another name of what its target names at that moment, metadata included. Its target must exist: in an earlier entry
   of its layer, or below it. If a whiteout further down in the same layer hides the target, the link still finds it.

Anything that these rules leave open is a ``SourceError``: a file on the way to a path, a hard link to a directory, to itself, or to
nothing.

Invariants: nothing recurses; no work grows with the depth of a path other than its length. A symbolic link has mode 0777, as on Linux.
What does not live here: reading layers, storing content, numbering inodes.
"""

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from imagefs.convert.entry import Entry, Kind
from imagefs.convert.tar_header import PATH_MAX, shown
from imagefs.errors import SourceError
from imagefs.format.tree import Inode

SYMLINKS_MAX: Final = 40
"""Most symbolic links on the way to one path: Linux's own limit, so no program could follow more."""

_TYPES: Final = {
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_DEFAULT_DIRECTORY: Final = stat.S_IFDIR | 0o755
_SYMLINK: Final = stat.S_IFLNK | 0o777

_Children = dict[bytes, Inode]


@dataclass(slots=True, eq=False)
class _Unread(Inode):
    """A regular file whose content was not stored, because an upper layer seemed to hide it."""

    entry: Entry | None = None


def _numbered(index: int) -> str:
    return f"layer {index + 1}"


def flatten(layers: Sequence[Sequence[Entry]], name: Callable[[int], str] = _numbered) -> Inode:
    """Return the root of the tree that ``layers`` (the bottom one first) make.

    Regular files have the ``content`` of their entries; for those that have none see :func:`missing_content`. Raises ``SourceError``, with
    what ``name`` calls the layer of that index.
    """
    flattener = _Flattener()
    for index, layer in enumerate(layers):
        try:
            flattener.apply(layer)
        except SourceError as error:
            raise SourceError(f"{error.message} (in {name(index)})", hint=error.hint) from error
    return flattener.root


def missing_content(root: Inode) -> list[Entry]:
    """Return the entries, each once, of the files in the tree whose content was not stored. Fill in theirs and flatten again."""
    found: dict[int, Entry] = {}
    stack = [root]
    while stack:
        for inode in (stack.pop().children or {}).values():
            if inode.children:
                stack.append(inode)
            elif type(inode) is _Unread and inode.entry is not None:
                found[id(inode.entry)] = inode.entry
    return list(found.values())


class _Flattener:
    """The tree as built so far. ``_parents`` remembers where directory paths, as written in entries, led to."""

    def __init__(self) -> None:
        self.root = _new_directory()
        self._parents: dict[bytes, _Children] = {}
        # What this layer's whiteouts took away: path -> (position of the whiteout in the layer, inode)
        self._buried: dict[bytes, tuple[int, Inode]] = {}

    def apply(self, layer: Sequence[Entry]) -> None:
        """Apply one layer on top of what is there."""
        parents = self._parents = {}
        self._buried = {}
        self._apply_whiteouts(layer)
        for position, entry in enumerate(layer):
            kind = entry.kind
            if kind is Kind.WHITEOUT or kind is Kind.OPAQUE:
                continue
            directory, _, name = entry.path.rpartition(b"/")
            if not name:
                self._apply_root(entry)
                continue
            children = parents.get(directory)
            if children is None:
                children = parents[directory] = self._make_directories(directory)
            if kind is Kind.DIR:
                self._put_directory(children, name, entry)
                continue
            inode = self._hard_link(entry, position, children, name) if kind is Kind.HARDLINK else _new_inode(entry)
            old = children.get(name)
            if old is not None and (old.children is not None or old.target):
                # Remembered paths may lead through what goes away.
                parents.clear()
            children[name] = inode

    # -- directories ----------------------------------------------------------------------------------------------------------------

    def _apply_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIR:
            raise SourceError("a layer makes the image's root something that is not a directory")
        _set_metadata(self.root, entry)

    def _put_directory(self, children: _Children, name: bytes, entry: Entry) -> None:
        inode = children.get(name)
        if inode is None or inode.children is None:
            if inode is not None and inode.target:
                self._parents.clear()
            inode = children[name] = _new_directory()
        _set_metadata(inode, entry)

    def _make_directories(self, path: bytes) -> _Children:
        """Return the children of directory ``path``, following links on the way and making what is missing."""
        directory = self.root
        for name in self._resolve(path):
            children = directory.children
            if children is None:
                break
            inode = children.get(name)
            if inode is None:
                inode = children[name] = _new_directory()
            directory = inode
        if directory.children is None:
            raise SourceError(f"{shown(path)} is not a directory, and a layer has something below it")
        return directory.children

    def _find_directory(self, path: bytes) -> _Children | None:
        """Return the children of directory ``path``, following links on the way; None if there is no such directory."""
        directory = self.root
        for name in self._resolve(path):
            inode = directory.children.get(name) if directory.children is not None else None
            if inode is None:
                return None
            directory = inode
        return directory.children

    def _resolve(self, path: bytes) -> list[bytes]:
        """Return the parts of ``path`` after all links in it were followed, also in its last part; the parts need not exist.

        ``SourceError`` past ``SYMLINKS_MAX`` links, and for a result longer than a path may be.
        """
        if not path:
            return []
        todo = path.split(b"/")
        todo.reverse()
        names: list[bytes] = []
        inodes: list[Inode | None] = [self.root]
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if names:
                    names.pop()
                    inodes.pop()
                continue
            directory = inodes[-1]
            inode = directory.children.get(name) if directory is not None and directory.children is not None else None
            if inode is None or not inode.target:
                names.append(name)
                inodes.append(inode)
                continue
            links += 1
            if links > SYMLINKS_MAX:
                raise SourceError(f"{shown(path)} leads through more than {SYMLINKS_MAX} symbolic links, or through a loop of them")
            if inode.target.startswith(b"/"):
                names.clear()
                del inodes[1:]
            todo.extend(reversed(inode.target.split(b"/")))
        if links and sum(map(len, names)) + len(names) > PATH_MAX:
            raise SourceError(f"{shown(path)} leads through symbolic links to a path longer than {PATH_MAX} bytes")
        return names

    # -- whiteouts ------------------------------------------------------------------------------------------------------------------

    def _apply_whiteouts(self, layer: Sequence[Entry]) -> None:
        """Take away what the whiteouts and opaque markers of ``layer`` hide, before any of its entries acts."""
        whiteouts = [(position, entry) for position, entry in enumerate(layer) if entry.kind is Kind.WHITEOUT or entry.kind is Kind.OPAQUE]
        if not whiteouts:
            return
        own = {entry.path for entry in layer if entry.kind not in (Kind.WHITEOUT, Kind.OPAQUE, Kind.SYMLINK)}
        # All are looked up before one acts, so that their order among each other does not matter either.
        found: list[tuple[int, bytes, _Children, bytes]] = []
        for position, entry in whiteouts:
            directory, name = entry.path, b""
            if entry.kind is Kind.WHITEOUT:
                directory, _, name = entry.path.rpartition(b"/")
            children = self._whiteout_directory(directory, own)
            if children:
                found.append((position, directory, children, name))
        for position, directory, children, name in found:
            hidden = [name] if name else list(children)
            for child in hidden:
                inode = children.pop(child, None)
                if inode is not None:
                    self._buried.setdefault(directory + b"/" + child if directory else child, (position, inode))

    def _whiteout_directory(self, path: bytes, own: set[bytes]) -> _Children | None:
        """Return what the layers below have in directory ``path``, None if nothing.

        A link on the way is followed, unless the layer (its paths are ``own``) puts something else in its place: then the path means that.
        """
        directory = self.root
        parts = path.split(b"/") if path else []
        for index, name in enumerate(parts):
            inode = directory.children.get(name) if directory.children is not None else None
            if inode is None:
                return None
            if inode.target:
                return None if b"/".join(parts[: index + 1]) in own else self._find_directory(path)
            directory = inode
        return directory.children

    # -- hard links -----------------------------------------------------------------------------------------------------------------

    def _hard_link(self, entry: Entry, position: int, children: _Children, name: bytes) -> Inode:
        """Return the inode that ``entry`` is to be another name of; ``children[name]`` is where it goes."""
        directory, _, target_name = entry.link.rpartition(b"/")
        there = self._parents.get(directory)
        if there is None:
            there = self._find_directory(directory)
            if there is not None:
                self._parents[directory] = there
        inode = self.root if not target_name else there.get(target_name) if there is not None else None
        if inode is None:
            inode = self._find_buried(entry.link, position)
        link = f"the hard link {shown(entry.path)} -> {shown(entry.link)}"
        if inode is None:
            raise SourceError(f"{link} names nothing", hint="a hard link's target must come before it, or be in a layer below")
        if inode.children is not None:
            raise SourceError(f"{link} names a directory")
        if there is children and target_name == name:
            raise SourceError(f"{link} is a link to itself")
        old = children.get(name)
        if old is not None and old.children is not None:
            place = [*self._resolve(entry.path.rpartition(b"/")[0]), name]
            if self._resolve(directory)[: len(place)] == place:
                raise SourceError(f"{link} would replace the directory that its target is in")
        return inode

    def _find_buried(self, path: bytes, position: int) -> Inode | None:
        """Return what ``path`` named in the layers below, if whiteouts after ``position`` took it away."""
        parts = path.split(b"/")
        for count in range(len(parts), 0, -1):
            found = self._buried.get(b"/".join(parts[:count]))
            if found is None:
                continue
            if found[0] < position:
                return None
            inode: Inode | None = found[1]
            for name in parts[count:]:
                inode = inode.children.get(name) if inode is not None and inode.children is not None else None
            return inode
        return None


def _new_directory() -> Inode:
    return Inode(_DEFAULT_DIRECTORY, children={})


def _set_metadata(inode: Inode, entry: Entry) -> None:
    """Give a directory the metadata of ``entry``: all of it, so that no attribute of a lower layer stays."""
    inode.mode = stat.S_IFDIR | entry.mode
    inode.uid = entry.uid
    inode.gid = entry.gid
    inode.mtime_ns = entry.mtime_ns
    inode.xattrs = entry.xattrs


def _new_inode(entry: Entry) -> Inode:
    """Return the inode of an entry that is neither a directory nor a hard link."""
    kind = entry.kind
    if kind is Kind.FILE:
        mode = stat.S_IFREG | entry.mode
        size = entry.size
        content = entry.content
        if content is not None:
            return Inode(mode, entry.uid, entry.gid, entry.mtime_ns, 0, size, content.object, content.inline, b"", entry.xattrs)
        if size:
            return _Unread(mode, entry.uid, entry.gid, entry.mtime_ns, size=size, xattrs=entry.xattrs, entry=entry)
        return Inode(mode, entry.uid, entry.gid, entry.mtime_ns, inline=b"", xattrs=entry.xattrs)
    mode = _SYMLINK if kind is Kind.SYMLINK else _TYPES[kind] | entry.mode
    return Inode(mode, entry.uid, entry.gid, entry.mtime_ns, entry.rdev, target=entry.link, xattrs=entry.xattrs)
