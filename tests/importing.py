"""Programs in which the names of a lazy package meet the modules of that package."""

PACKAGE_ORDERS = """
import importlib, pkgutil, sys

def modules(package):
    for found in pkgutil.iter_modules(package.__path__):
        if found.name != "__main__":
            importlib.import_module(f"{package.__name__}.{found.name}")

def names(package):
    return {name: getattr(package, name) for name in package.__all__}

package = importlib.import_module(sys.argv[1])
if sys.argv[2] == "modules first":
    modules(package)
before = names(package)
modules(package)
assert names(package) == before
assert [name for name, found in before.items() if not callable(found)] == []
"""
"""Given a package and what comes first: each public name is a class or function, then and later."""
