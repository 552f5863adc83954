"""Load what every call's process needs, once, in the server that they are forked from.

For `AgentServer(preload_modules=["livekit.plugins.moss_voice.preload"])`, which imports this module there.
The law: what is loaded here may be used on both sides of a fork. It is code, the model's weights and its
session, which has no threads of its own; never a thread, an event loop, an open connection or a store.
"""

from __future__ import annotations

import os

import hnswlib  # noqa: F401 - imported to be shared
import obstore  # noqa: F401
from livekit.plugins.moss_voice.log import logger
from livekit.plugins.moss_voice.processes import MODELS_VARIABLE

import moss_voice.client  # noqa: F401
from moss_voice.errors import MossError
from moss_voice.models import DEFAULT_MODEL, load_embedder

for _name in os.environ.get(MODELS_VARIABLE, DEFAULT_MODEL).split(","):
    try:
        # Its first run sets up buffers that are better shared than made by every process.
        load_embedder(_name.strip()).embed_query("hello")
    except MossError as _error:
        logger.error("preload: %s", _error)
