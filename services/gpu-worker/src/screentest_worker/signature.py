"""The signatures of a pipeline class, read from the source in a model env without importing it (which takes seconds).

The lazy import tables of diffusers say in which file a class is; `ast` says what its methods take. A test holds every
lane's class against `inspect`.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from screentest_worker.findings import Check, Problem

PACKAGE = "diffusers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One parameter of a method; required: it has no default."""

    name: str
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """takes_any: it has `**kwargs`, so every keyword is taken."""

    parameters: tuple[Taken, ...]
    takes_any: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    def takes(self, keyword: str) -> bool:
        return self.takes_any or keyword in self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSignature:
    """optional_components: those that may be None, as the class declares them."""

    class_name: str
    library: str
    init: Method
    call: Method
    optional_components: tuple[str, ...]


def site_packages(env_python: Path) -> Path | None:
    """Where the packages of an interpreter's environment lie, None when there is no such folder."""
    found = sorted((env_python.parent.parent / "lib").glob("python3*/site-packages"))
    return found[0] if found else None


def read(packages: Path, class_name: str) -> PipelineSignature | Problem:
    """The signatures of a pipeline class of diffusers; a Problem when there is no such class or it cannot be read."""
    package = packages / PACKAGE
    library = _version(packages)
    if not (package / "__init__.py").is_file():
        return _problem(f"the model env has no {PACKAGE}", "run `make envs`")
    try:
        exported = set(_pipelines(package / "__init__.py"))
        if class_name not in exported:
            near = difflib.get_close_matches(class_name, sorted(exported), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "name a class that it has"
            return _problem(f"{library} has no pipeline {class_name!r}", f"correct pipeline.class of the lane: {hint}")
        home = _Source.of_class(package, class_name)
        if home is None:
            return _problem(f"{library} exports {class_name!r} but no file defines it", "run `make envs` again")
        init, call = home.method(class_name, "__init__"), home.method(class_name, "__call__")
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return _problem(f"the source of {library} cannot be read: {error}", "run `make envs` again")
    if init is None or call is None:
        return _problem(f"{class_name} of {library} cannot be called", "correct pipeline.class of the lane")
    return PipelineSignature(
        class_name=class_name,
        library=library,
        init=_method(init),
        call=_method(call),
        optional_components=home.texts(class_name, "_optional_components"),
    )


def _problem(reason: str, fix: str) -> Problem:
    return Problem(check=Check.SIGNATURE, reason=reason, fix=fix)


def _version(packages: Path) -> str:
    """`diffusers 0.42.1`, from the name of its metadata folder."""
    found = sorted(packages.glob(f"{PACKAGE}-*.dist-info"))
    return f"{PACKAGE} {found[0].name.removeprefix(f'{PACKAGE}-').removesuffix('.dist-info')}" if found else PACKAGE


def _pipelines(init_file: Path) -> Iterator[str]:
    """Names that the package's own table lists as pipelines."""
    return iter(re.findall(r'^\s+"(\w+Pipeline)",$', init_file.read_text(encoding="utf-8"), re.MULTILINE))


class _Source:
    """One module of the package, parsed."""

    def __init__(self, package: Path, file: Path) -> None:
        self._package = package
        self._file = file
        self._body = ast.parse(file.read_text(encoding="utf-8")).body
        self._classes = {node.name: node for node in self._body if isinstance(node, ast.ClassDef)}

    @classmethod
    def of_class(cls, package: Path, class_name: str) -> _Source | None:
        """By the lazy tables; where they do not tell, by looking into every file of the pipelines (0.3 s)."""
        folder = package / "pipelines"
        file = _listed_file(folder, class_name) or _file_with_class(folder, class_name)
        return cls(package, file) if file is not None else None

    def method(self, class_name: str, name: str) -> ast.FunctionDef | None:
        """The method as the class has it, its own or the first one among its bases."""
        node = self._classes.get(class_name)
        if node is None:
            return None
        own = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name), None)
        if own is not None:
            return own
        bases = (base.id for base in node.bases if isinstance(base, ast.Name))
        found = (self._inherited(base, name) for base in bases)
        return next((method for method in found if method is not None), None)

    def _inherited(self, base: str, name: str) -> ast.FunctionDef | None:
        if base in self._classes:
            return self.method(base, name)
        file = self._imported_from(base)
        return _Source(self._package, file).method(base, name) if file is not None else None

    def _imported_from(self, name: str) -> Path | None:
        """The file of the package that an import brings the name from."""
        for node in ast.walk(ast.Module(body=self._body, type_ignores=[])):
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
                return self._file_of(node, name)
        return None

    def _file_of(self, node: ast.ImportFrom, name: str) -> Path | None:
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            start = self._file.parents[node.level - 1]
        elif parts and parts[0] == PACKAGE:
            start, parts = self._package, parts[1:]
        else:
            return None
        found = start.joinpath(*parts)
        if found.is_dir():
            return _listed_file(found, name) or _file_with_class(found, name)
        file = found.with_suffix(".py")
        return file if file.is_file() else None

    def texts(self, class_name: str, attribute: str) -> tuple[str, ...]:
        """A class attribute that is a list of texts; empty when it is not there."""
        for node in self._classes[class_name].body:
            if isinstance(node, ast.Assign) and any(_is_name(target, attribute) for target in node.targets):
                return tuple(_texts(node.value))
        return ()


def _listed_file(folder: Path, class_name: str) -> Path | None:
    """The file that the folder's `_import_structure` names for the class, through sub-packages."""
    init_file = folder / "__init__.py"
    if not init_file.is_file():
        return None
    for module, names in _import_structure(init_file):
        if class_name not in names:
            continue
        found = folder.joinpath(*module.split("."))
        if found.is_dir():
            return _listed_file(found, class_name)
        file = found.with_suffix(".py")
        return file if file.is_file() else None
    return None


def _import_structure(init_file: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Rows of a lazy import table, be they assigned, `.extend`ed, or part of a literal of many."""
    for node in ast.walk(ast.parse(init_file.read_text(encoding="utf-8"))):
        match node:
            case ast.Assign(targets=[ast.Subscript(value=table, slice=ast.Constant(value=str(key)))], value=value):
                if _is_name(table, "_import_structure"):
                    yield key, tuple(_texts(value))
            case ast.Call(
                func=ast.Attribute(value=ast.Subscript(value=table, slice=ast.Constant(value=str(key)))), args=[value]
            ):
                if _is_name(table, "_import_structure"):
                    yield key, tuple(_texts(value))
            case (
                ast.Assign(targets=[table], value=ast.Dict() as rows)
                | ast.Call(func=ast.Attribute(value=table, attr="update"), args=[ast.Dict() as rows])
            ):
                if _is_name(table, "_import_structure"):
                    yield from _rows(rows)


def _rows(table: ast.Dict) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value, tuple(_texts(value))


def _file_with_class(folder: Path, class_name: str) -> Path | None:
    pattern = re.compile(rf"^class {re.escape(class_name)}\b", re.MULTILINE)
    return next(
        (file for file in sorted(folder.rglob("*.py")) if pattern.search(file.read_text(encoding="utf-8"))), None
    )


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _texts(node: ast.expr) -> Iterator[str]:
    for item in ast.walk(node):
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            yield item.value


def _method(node: ast.FunctionDef) -> Method:
    """Without `self`; a parameter that only `*args` or `**kwargs` would take is none."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    taken = [
        Taken(name=argument.arg, required=index < first_default)
        for index, argument in enumerate(positional)
        if index > 0
    ]
    taken += [
        Taken(name=argument.arg, required=default is None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return Method(parameters=tuple(taken), takes_any=arguments.kwarg is not None)
