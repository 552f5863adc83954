"""The plugin's logger; what it says names kinds, numbers and ids, never what was spoken."""

import logging

logger = logging.getLogger("livekit.plugins.moss_voice")
