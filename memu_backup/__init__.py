"""memu-backup: archives a family's server each night, proves what it wrote, and gives it back."""

import os

# pydantic would look through all that pip has installed, at each start, for plugins that nobody asked for.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: that reads what pip noted, and short commands do not need it."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("memu-backup")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"
