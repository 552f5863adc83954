"""moss_voice for LiveKit Agents: one line gives an agent the memory of its call.

memory = await moss_voice.attach(session, knowledge=["support-faqs"])
await session.start(agent, room=ctx.room)
"""

from __future__ import annotations

import threading

from livekit.agents import Plugin
from livekit.plugins.moss_voice.attach import attach
from livekit.plugins.moss_voice.log import logger
from livekit.plugins.moss_voice.processes import prewarm
from livekit.plugins.moss_voice.version import __version__

__all__ = ["MossVoicePlugin", "__version__", "attach", "prewarm"]


class MossVoicePlugin(Plugin):
    """What `python -m livekit.agents download-files` finds."""

    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or __name__, logger)

    def download_files(self) -> None:
        """Fetch the models named in `MOSS_VOICE_MODELS` (comma-separated); the default is bundled."""
        from livekit.plugins.moss_voice.processes import download

        download()


# The framework registers on the main thread only; elsewhere the plugin works without.
if threading.current_thread() is threading.main_thread():
    Plugin.register_plugin(MossVoicePlugin())
