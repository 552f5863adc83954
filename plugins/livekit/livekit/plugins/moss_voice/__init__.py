"""moss_voice for LiveKit Agents: one line gives an agent the memory of its call."""

from livekit.plugins.moss_voice.version import __version__

__all__ = ["__version__"]
