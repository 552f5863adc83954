"""`attach`: one line before `session.start()`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from livekit.agents import AgentSession, JobContext, get_job_context
from livekit.plugins.moss_voice.attachment import Attachment, OnContext
from livekit.plugins.moss_voice.log import HOST
from livekit.plugins.moss_voice.processes import prewarmed

from moss_voice import CallMemory, MossClient
from moss_voice.errors import InvalidArgumentError
from moss_voice.live import OPEN_TIMEOUT_S, PUSH_TIMEOUT_S, begin_call

__all__ = ["attach"]


async def attach(
    session: AgentSession[Any],
    client: MossClient | None = None,
    *,
    call_id: str | None = None,
    knowledge: Sequence[str] | None = None,
    focus: Sequence[str] | None = None,
    tools: bool | None = None,
    window: int | None = None,
    open_timeout_s: float = OPEN_TIMEOUT_S,
    push_timeout_s: float = PUSH_TIMEOUT_S,
    on_context: OnContext | None = None,
    trace_text: bool = False,
    **options: Any,
) -> CallMemory:
    """Give an AgentSession the memory of its call; use it before `session.start()`.

    From then on every turn of both sides is remembered as it was really spoken, each reply of any agent
    of the session gets what is worth knowing for it, and the call is pushed when the session closes.
    Nothing is to be subclassed or called. The host's history is never changed.

    Args:
        session: Not started yet, best; one that has started loses nothing that its history holds.
        client: Where calls are kept. Where None, the one that `prewarm` made in this process, else one
            made from the environment and closed with the call.
        call_id: Names the call and its index. Where None, the room's name and id in a job, so that an
            agent sent into the same room anew resumes the call; a new name elsewhere.
        knowledge: Names of indexes to look things up in; those given to `prewarm` where None.
        focus: Metadata fields of theirs that hold names of what a call can be about. Where None, fields
            are found that look like it; `()` looks for no names.
        tools: Whether the LLM may call `search_knowledge` and `recall_call` itself. Where None, only
            while the current agent's is a realtime model, to which little can be added before a reply;
            attach before `session.start()`, for such a model is told of its tools once. A tool whose
            name the agent uses itself is left out.
        window: Show the LLM the last so many items of a long history, and the instructions; what is
            older can be recalled. All of it where None.
        open_timeout_s: How long the cloud may take to open the call. After that, and where it does not
            answer, the call begins with nothing stored, and is merged with what is at its end.
        push_timeout_s: How long the push may hold up the session's close; then it is left to the
            journal.
        on_context: Called with each `CallContext`, before the reply that it is for; must be quick.
        trace_text: True puts the query and the block into the spans; they are private.
        options: See `MossClient.call`: `without` (parts of the retrieval to leave out, such as
            `["gate"]`), `model_id`, `top_k`, `alpha`, `min_score`, `max_tokens`, `deadline_ms`,
            `journal`, `redact`, `record`, `ttl`.

    Returns:
        The call's memory, ended with the session; ending it earlier is fine.

    Raises:
        InvalidArgumentError: If an argument is not what it should be.
        AuthenticationError: If the credentials are wrong.
        IndexNotFoundError: If a knowledge index does not exist.
        ModelMismatchError: If the stored call belongs to another model.
    """
    if window is not None and window < 1:
        raise InvalidArgumentError(f"window: expected 1 item or more, got {window}")
    job = get_job_context(required=False)
    warm = prewarmed(job)
    owns_client = client is None and warm is None
    if client is None:
        client = warm.client if warm is not None else MossClient()
    if knowledge is None:
        knowledge = warm.knowledge if warm is not None else ()
    name = call_id or _name_of(job)
    try:
        memory = await begin_call(
            client,
            name,
            open_timeout_s=open_timeout_s,
            host=HOST,
            knowledge=knowledge,
            focus=focus,
            **options,
        )
    except BaseException:
        if owns_client:
            await client.close()
        raise
    attachment = Attachment(
        session,
        memory,
        client=client,
        owns_client=owns_client,
        tools=tools,
        window=window,
        push_timeout_s=push_timeout_s,
        on_context=on_context,
        trace_text=trace_text,
    )
    attachment.begin()
    if job is not None:
        job.add_shutdown_callback(attachment.on_shutdown)
    return memory


def _name_of(job: JobContext | None) -> str:
    """Name a call: rooms may be used again under one name by other callers, their ids are not."""
    if job is None:
        return f"call-{secrets.token_hex(8)}"
    room = job.job.room
    return f"{room.name or 'room'}-{room.sid or job.job.id}"
