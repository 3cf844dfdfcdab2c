"""Load the function that makes a user's environment, from a module or from a file."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from lssvwm.envs.user_code import place


def load_factory(factory: str) -> Callable[..., Any]:
    """Return the callable that "package.module:name" or "path/to/file.py:name" names.

    A path is relative to the current directory, and `~` is the home directory. The
    file's folder comes first on `sys.path` while the file is imported and while the
    callable runs. So it can import its neighbours, as a script can. Raises ValueError
    for another form, and for a module, a file or a name that does not exist.
    """
    source, colon, name = factory.rpartition(":")
    if not (source and colon and name):
        raise ValueError(
            'factory must read "package.module:callable" or '
            f'"path/to/file.py:callable", got {factory!r}'
        )
    path = Path(source).expanduser().resolve() if source.endswith(".py") else None
    if path is not None and not path.is_file():
        raise ValueError(f"factory {factory!r}: there is no file {path}")
    try:
        module = import_module(source) if path is None else _import_file(path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"factory {factory!r}: {error}; is it on the Python path?"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"factory {factory!r}: importing it failed{place(error)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        near = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"factory {factory!r}: {source} has no {name!r}{hint}")
    made = getattr(module, name)
    if not callable(made):
        raise ValueError(
            f"factory {factory!r}: {name} is {type(made).__name__}, no function or class"
        )
    return made if path is None else _called_from(path.parent, made)


def _import_file(path: Path) -> ModuleType:
    """Import the file once, under a name that no other module has."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"_lssvwm_factory_{digest}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up there
    try:
        with _first_on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _called_from(folder: Path, made: Callable[..., Any]) -> Callable[..., Any]:
    """Return `made` so that imports inside it also find the modules of `folder`."""

    @functools.wraps(made)
    def call(*arguments: Any, **settings: Any) -> Any:
        with _first_on_path(folder):
            return made(*arguments, **settings)

    return call


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
