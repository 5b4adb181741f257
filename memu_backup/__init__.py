"""memu-backup: archives a family's server each night, proves what it wrote, and gives it back."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("memu-backup")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
