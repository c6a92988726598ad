"""The one error whose message is meant for the user: `segvid` prints it as a sentence, without a stack trace."""


class UserError(Exception):
    """What is wrong, in which file or option, and what to do about it."""

    def __init__(self, message: str) -> None:
        # A worker process of a loader hands its error over as a printed traceback, which ends with the sentence.
        super().__init__(message.rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")[2].rstrip())


def user_message(error: BaseException | None) -> str | None:
    """The sentence of the `UserError` that an error is, or that it was raised from; None if it is none."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
