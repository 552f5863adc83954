"""The memory of a voice agent, inside the agent's own process."""

from moss_voice.call.memory import CallMemory
from moss_voice.client import Authenticator, MossClient
from moss_voice.errors import MossError
from moss_voice.session import SessionIndex
from moss_voice.types import (
    CallContext,
    DocumentInfo,
    GetDocumentsOptions,
    Hit,
    IndexInfo,
    JobStatusResponse,
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
    "DocumentInfo",
    "GetDocumentsOptions",
    "Hit",
    "IndexInfo",
    "JobStatusResponse",
    "MossClient",
    "MossError",
    "MutationOptions",
    "MutationResult",
    "PushIndexResult",
    "QueryOptions",
    "QueryResultDocumentInfo",
    "RecoveredCall",
    "SearchResult",
    "SessionIndex",
    "__version__",
]
