"""The plugin is released with the library and has its version."""

from moss_voice import __version__

__all__ = ["__version__"]
