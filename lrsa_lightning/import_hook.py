"""Does something once a module is imported, without importing it."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


def after_import(name: str, action: Callable[[], None]) -> None:
    """Calls ``action`` at once if the module is imported already; otherwise right after its import, if that comes.

    Args:
        name: full name of the module.
        action: what to do; its own imports may be heavy.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


class _Watcher(MetaPathFinder):
    """Finds one module as the other finders do, and lets its loader call an action after it."""

    def __init__(self, name: str, action: Callable[[], None]):
        self._name, self._action = name, action

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None:
            spec.loader.exec_module = self._then_act(spec.loader)
        return spec

    def _then_act(self, loader) -> Callable:
        execute = loader.exec_module

        def exec_module(module) -> None:
            del loader.exec_module  # the loader is the module's own
            execute(module)
            self._action()

        return exec_module
