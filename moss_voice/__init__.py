"""The memory of a voice agent, inside the agent's own process.

The names below are imported when they are first used, so that `import moss_voice.text` or a command's
`--help` does not pay for numpy and the stores.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moss_voice.call.memory import CallMemory, Counters
    from moss_voice.client import MossClient
    from moss_voice.cloud.cloud import Authenticator, Forgotten
    from moss_voice.cloud.objects import Store, StoredObject
    from moss_voice.errors import MossError
    from moss_voice.redaction import PiiRedactor
    from moss_voice.session import SessionIndex
    from moss_voice.types import (
        CallContext,
        DocumentInfo,
        GetDocumentsOptions,
        Hit,
        IndexInfo,
        IndexVersion,
        JobStatusResponse,
        MergedChanges,
        MutationOptions,
        MutationResult,
        PushIndexResult,
        QueryOptions,
        QueryResultDocumentInfo,
        RecoveredCall,
        SearchResult,
    )

__version__ = "0.1.0"

__all__ = [
    "Authenticator",
    "CallContext",
    "CallMemory",
    "Counters",
    "DocumentInfo",
    "Forgotten",
    "GetDocumentsOptions",
    "Hit",
    "IndexInfo",
    "IndexVersion",
    "JobStatusResponse",
    "MergedChanges",
    "MossClient",
    "MossError",
    "MutationOptions",
    "MutationResult",
    "PiiRedactor",
    "PushIndexResult",
    "QueryOptions",
    "QueryResultDocumentInfo",
    "RecoveredCall",
    "SearchResult",
    "SessionIndex",
    "Store",
    "StoredObject",
    "__version__",
]

_HOMES = {
    "CallMemory": "moss_voice.call.memory",
    "Counters": "moss_voice.call.memory",
    "Authenticator": "moss_voice.cloud.cloud",
    "Forgotten": "moss_voice.cloud.cloud",
    "MossClient": "moss_voice.client",
    "MossError": "moss_voice.errors",
    "PiiRedactor": "moss_voice.redaction",
    "SessionIndex": "moss_voice.session",
    "Store": "moss_voice.cloud.objects",
    "StoredObject": "moss_voice.cloud.objects",
}


if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "moss_voice.types")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
