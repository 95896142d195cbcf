"""What a line of the log is about, for programs that read it."""


def about(event: str, session: str | None = None) -> dict[str, str | None]:
    """The `extra` of a line: the name of what happened, and of the session it happened to."""
    return {"event": event, "session": session}
