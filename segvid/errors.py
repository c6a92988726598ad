"""The one error whose message is meant for the user: `segvid` prints it as a sentence, without a stack trace."""

import errno

OUT_OF_MEMORY = (
    "out of memory. Lower data.init_args.batch_size (trainer.accumulate_grad_batches keeps the step the same) or the "
    "crop; in evaluation data.init_args.eval_batch_size or model.init_args.inference.window_batch; in segvid predict "
    "give a --window."
)
LOST_WORKER = (
    "a process that loads data was ended from outside, most often by the system for want of memory. Lower "
    "data.init_args.num_workers or data.init_args.batch_size."
)

USERS = ("MisconfigurationException", "InvalidCxxCompiler", "NotImplementedError")  # of Lightning and torch


class UserError(Exception):
    """What is wrong, in which file or option, and what to do about it."""

    def __init__(self, message: str) -> None:
        # A worker process of a loader hands its error over as a printed traceback, which ends with the sentence.
        super().__init__(message.rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")[2].rstrip())


def user_message(error: BaseException | None) -> str | None:
    """The sentence of the `UserError` that an error is, or that it was raised from; None if it is none.

    A full disk and want of memory are the user's to mend, too.
    """
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" ({error.filename})" if error.filename else ""
            return f"the disk is full{place}. Make room; what was written before is whole."
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _no_cpu_memory(error):
            return OUT_OF_MEMORY
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            return LOST_WORKER
        error = error.__cause__ or error.__context__
    return None


def fault(error: Exception) -> str | None:
    """One line for an error of a library that in this program a user has caused: a path, a value, an option.

    None for what is a fault of the program itself.
    """
    if type(error).__name__ in USERS or isinstance(error, OSError | ValueError | ZeroDivisionError | OverflowError):
        text = " ".join(str(error).split())[:500] or "no message"
        return f"{type(error).__name__}: {text} (--debug shows where.)"
    return None


def _no_cpu_memory(error: BaseException) -> bool:
    """torch has no class of its own for it."""
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
