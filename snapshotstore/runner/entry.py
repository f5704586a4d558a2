"""Which service is to be run: ``MODULE:CLASS`` and a source tree, and what its ``@app.cls(...)`` says. Nothing of it is imported.

The module is for the image's Python, and its first line may import what this host does not have. So its text is read: the decorator's
arguments are literals, or names that the module gives to literals. What cannot be read that way is a ``UsageError`` that says so.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imagefs.errors import UsageError
from snapshotstore.app import Settings, methods_of, settings_of

_HINT: Final = 'a service is a class with @app.cls(image="NAME:TAG", ...), and app is App("NAME") in the same module'
_TEXT_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A service: ``target`` is ``MODULE:CLASS``, importable from ``folder``, and ``settings`` is what its decorator says.

    ``methods`` are those that can be called, as far as is known without running the module: None where a base class may have more.
    """

    target: str
    folder: Path
    settings: Settings
    methods: frozenset[str] | None = None

    def check(self, method: str) -> None:
        """See that there is a method. ``UsageError``."""
        if self.methods is not None and method not in self.methods:
            known = ", ".join(sorted(self.methods)) or "none"
            raise UsageError(f"{self.target} has no method {method} that can be called", hint=f"those with @method(): {known}")


def find(target: str, folder: Path) -> Entry:
    """Return the service that ``target`` names, with its module below ``folder``. ``UsageError`` for what is none."""
    module, colon, name = target.partition(":")
    parts = module.split(".")
    if not colon or not all(part.isidentifier() for part in (*parts, *name.split("."))):
        raise UsageError(f"not a service: {target!r}", hint="MODULE:CLASS, for example service:Service")
    path = next((path for path in _files(folder, parts) if path.is_file()), None)
    if path is None:
        raise UsageError(f"there is no module {module} in {folder}", hint="--source names the directory that it is imported from")
    tree = _parse(path)
    constants = _constants(tree)
    found = _class(tree, name.split("."))
    if found is None:
        raise UsageError(f"{path} has no class {name}", hint=_HINT)
    for decorator in found.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute) and decorator.func.attr == "cls":
            return Entry(target, folder, _settings(decorator, tree, constants, f"{path}:{decorator.lineno}"), _methods(found))
    raise UsageError(f"{target} is no service: the class has no @app.cls(...)", hint=_HINT)


def of_class(kind: type) -> Entry:
    """Return the service that an imported class is. ``UsageError`` for one that another process could not import."""
    try:
        _, settings = settings_of(kind)
    except TypeError as error:
        raise UsageError(str(error), hint=_HINT) from None
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__ == "__main__" or file is None or "<locals>" in kind.__qualname__:
        raise UsageError(f"{kind.__qualname__} cannot be imported elsewhere", hint="define it at the top of a module, and import that")
    path = Path(file).resolve()
    folder = path.parents[kind.__module__.count(".") + (path.name == "__init__.py")]
    return Entry(f"{kind.__module__}:{kind.__qualname__}", folder, settings, frozenset(methods_of(kind)))


def _files(folder: Path, parts: list[str]) -> tuple[Path, Path]:
    return folder.joinpath(*parts[:-1], parts[-1] + ".py"), folder.joinpath(*parts, "__init__.py")


def _parse(path: Path) -> ast.Module:
    try:
        if path.stat().st_size > _TEXT_MAX:
            raise UsageError(f"{path} is too large for a module: at most {_TEXT_MAX >> 20} MiB are read")
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is no Python that this version reads: {error}") from error


def _class(tree: ast.AST, names: list[str]) -> ast.ClassDef | None:
    found: ast.AST | None = tree
    for name in names:
        body: list[ast.stmt] = getattr(found, "body", [])
        # Of several the last one is what the module has in the end.
        found = next((node for node in reversed(body) if isinstance(node, ast.ClassDef) and node.name == name), None)
    return found if isinstance(found, ast.ClassDef) else None


def _methods(found: ast.ClassDef) -> frozenset[str] | None:
    """Return the names of what may be called: of functions with any decorator but a hook's, whatever that is called here."""
    if found.bases or found.keywords:
        return None
    names = set()
    for node in found.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_called(decorator) not in {"enter", "exit"} for decorator in node.decorator_list):
                names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {target.id for target in _targets(node) if isinstance(target, ast.Name)}
        elif not isinstance(node, ast.Expr | ast.Pass | ast.ClassDef):
            return None
    return frozenset(names)


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _called(node: ast.expr) -> str:
    """Return the last part of the name of what is called, or nothing."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in _targets(node)
        if isinstance(target, ast.Name)
    }


def _settings(call: ast.Call, tree: ast.Module, constants: dict[str, ast.expr], place: str) -> Settings:
    given = {keyword.arg: _literal(keyword.value, constants, place) for keyword in call.keywords if keyword.arg is not None}
    app = _app(call, tree, constants, place)
    image = given.get("image")
    if not isinstance(image, str) or call.args or len(given) != len(call.keywords):
        raise UsageError(f"{place}: @app.cls needs image=..., by name", hint=_HINT)
    if unknown := sorted(set(given) - {"image", "enable_memory_snapshot", "environment", "secrets", "fixed_layout", "preload"}):
        raise UsageError(f"{place}: @app.cls does not know {', '.join(unknown)}", hint=_HINT)
    lists = [given.get(key, ()) for key in ("environment", "secrets", "preload")]
    if not all(isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) for names in lists):
        raise UsageError(f"{place}: environment, secrets and preload are lists of names", hint=_HINT)
    names = [tuple(listed) for listed in lists]
    frozen, fixed = bool(given.get("enable_memory_snapshot", False)), bool(given.get("fixed_layout", True))
    return Settings(app, image, frozen, names[0], names[1], fixed, names[2])


def _app(call: ast.Call, tree: ast.Module, constants: dict[str, ast.expr], place: str) -> str:
    """Return the name of the app whose ``cls`` is called."""
    variable = call.func.value if isinstance(call.func, ast.Attribute) else None
    made = constants.get(variable.id) if isinstance(variable, ast.Name) else None
    if isinstance(made, ast.Call) and len(made.args) + len(made.keywords) == 1:
        name = _literal(made.args[0] if made.args else made.keywords[0].value, _constants(tree), place)
        if isinstance(name, str):
            return name
    raise UsageError(f"{place}: the app of this class is not made in its module", hint=_HINT)


def _literal(node: ast.expr, constants: dict[str, ast.expr], place: str) -> Any:
    if isinstance(node, ast.Name) and node.id in constants:
        node = constants[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise UsageError(f"{place}: {ast.unparse(node)[:80]} is no literal, and the module is not run to find out", hint=_HINT) from None
