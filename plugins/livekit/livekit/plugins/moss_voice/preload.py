"""Load what every call's process needs, once, in the server that they are forked from.

For `AgentServer(preload_modules=["livekit.plugins.moss_voice.preload"])`, which imports this module there.
`MOSS_VOICE_MODELS` names the models, `MOSS_VOICE_PRELOAD` the knowledge indexes (comma-separated), which
then are in memory once, however many calls there are. A worker that needs more lists a module of its
own, which imports this one and calls `MossClient.share_indexes`.

The law: what is loaded here may be used on both sides of a fork. It is code, a model's weights and its
session, which has no threads of its own, and indexes; never a thread, an event loop, an open connection
or a store. And whatever goes wrong, the module can be imported: a fork server that fails takes the
worker with it.
"""

from __future__ import annotations

import os

from livekit.plugins.moss_voice.log import logger
from livekit.plugins.moss_voice.processes import KNOWLEDGE_VARIABLE, load_models, named_in

from moss_voice.client import MossClient

try:
    load_models()
    if _names := named_in(os.environ.get(KNOWLEDGE_VARIABLE, "")):
        MossClient().share_indexes(_names)
except Exception as _error:  # noqa: BLE001 - see the law
    logger.error("preload failed (%s); processes load it themselves", type(_error).__name__)
