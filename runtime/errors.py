"""Everything that a caller may want to catch. Each error keeps a builtin base, says what it got, and what to do."""


class MetasrganError(Exception):
    """Base of every error that this project raises on purpose; its text is one line, fit for a person."""

    def __str__(self) -> str:
        return line(super().__str__(), 400)


def line(value: object, most: int) -> str:
    """A text as one line of so many characters at most, a long one without its middle: files name and say what they like."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split("\n")))
    return text if len(text) <= most else f"{text[: most // 2]} … {text[3 - most // 2 :]}"


def reason(error: BaseException) -> str:
    """The first line of what another library says went wrong, or the kind of error where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def told(error: BaseException) -> str:
    """An error as one line for a person."""
    if isinstance(error, MemoryError) and not isinstance(error, MetasrganError):
        return "there is not enough memory for this: give a smaller scale or shape, or a machine with more"
    return line(error, 400) or type(error).__name__


class ScaleError(MetasrganError, ValueError):
    """A scale, an output shape or a window that cannot be served."""


class ImageError(MetasrganError, ValueError):
    """Input pixels that cannot be upscaled: wrong dimensions, not real numbers, NaN or infinity."""


class InputFileError(MetasrganError, OSError):
    """An input file that is missing, truncated or not what its name says."""


class OutputFileError(MetasrganError, OSError):
    """An output file that exists already or could not be written; nothing half-written is left behind."""


class BundleError(MetasrganError, ValueError):
    """A bundle that is damaged, incomplete, or made by a newer release."""


class DeviceError(MetasrganError, RuntimeError):
    """A device that does not exist or cannot run here. `repair` is the command or choice that would help, where one would."""

    def __init__(self, problem: str, repair: str = "") -> None:
        super().__init__(f"{problem}: {repair}" if repair else problem)
        self.problem, self.repair = problem, repair


class DeviceMemoryError(DeviceError, MemoryError):
    """A GPU or a machine without enough memory left, however small the tiles; or one that gives no more threads."""


class ClosedError(MetasrganError, RuntimeError):
    """An `Upscaler` that was used after `close`."""
