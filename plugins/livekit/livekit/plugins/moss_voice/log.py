"""What the plugin is called where it speaks: in its log, which names kinds, numbers and ids, and in metrics."""

import logging

__all__ = ["HOST", "logger"]

HOST = "livekit"

logger = logging.getLogger("livekit.plugins.moss_voice")
