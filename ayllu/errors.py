"""Every error that a user can meet: what happened, why, what to do, and the exit code.

Exit codes: 0 done, 1 the task failed, 2 wrong usage, 3 bad recipe, 4 input not found, 5 bad or
untrusted file, 6 not enough memory or disk, 7 network needed, 8 refused for safety, 130 interrupted.
Programming mistakes are asserts, not these.
"""

from __future__ import annotations


class AylluError(Exception):
    """A typed error for people. `str(error)` is the text that the command line prints."""

    exit_code = 1
    code = "failed"  # stable name, used by the HTTP API and in JSON output

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"why: {self.why}")
        if self.fix:
            lines.append(f"what to do: {self.fix}")
        return "\n".join(lines)


class AylluWarning(UserWarning):
    """Something that a user should look at and that is no error; given to `warnings.warn`."""


class CutOffError(AylluError):
    """The tokens ended before the answer began: all of them were thinking or calls."""

    code = "cut_off"

    def __init__(self, tokens: int, most: int | None) -> None:
        super().__init__(
            "the answer was cut off before it began",
            why=f"{tokens} tokens of thinking and calls used up what was allowed"
            if most is not None
            else f"{tokens} tokens of thinking and calls filled the context",
            fix="allow more with --max-tokens"
            if most is not None
            else "bound the thinking with --thinking-budget, or ask for less at once",
        )


class UsageError(AylluError):
    """The command line's words are off."""

    exit_code, code = 2, "usage"


# ---- recipes (3)
class RecipeError(AylluError):
    """The recipe can't be read or doesn't fit together."""

    exit_code, code = 3, "recipe"


class RecipeKeyError(RecipeError):
    """A key that no stage knows; the message names the nearest one that exists."""

    code = "recipe_key"


class RecipeValueError(RecipeError):
    """A value of the wrong type or outside its bounds."""

    code = "recipe_value"


class TooLittleTextError(RecipeError):
    """The corpus gives fewer tokens than one batch (or one held-out row) needs."""

    code = "too_little_text"


# ---- inputs that are not there (4)
class InputNotFoundError(AylluError):
    """A file or folder that was named does not exist."""

    exit_code, code = 4, "not_found"


class CorpusNotFoundError(InputNotFoundError):
    """The corpus folder or file of the recipe does not exist."""

    code = "corpus_not_found"


class CorpusEmptyError(InputNotFoundError):
    """The corpus is there but holds no document (or none survived the rules)."""

    code = "corpus_empty"


class ModelFileMissingError(InputNotFoundError):
    """A model folder lacks a file that it needs."""

    code = "model_file_missing"


# ---- files that can't be trusted (5)
class BadFileError(AylluError):
    """A file whose content is damaged or not what it claims to be."""

    exit_code, code = 5, "bad_file"


class LicenceMissingError(BadFileError):
    """A document without a known licence can't enter a mixture."""

    code = "licence_missing"


class NotUtf8Error(BadFileError):
    """Text that is not valid UTF-8."""

    code = "not_utf8"


class CheckpointDamagedError(BadFileError):
    """No checkpoint of a stage is whole."""

    code = "checkpoint_damaged"


class ModelFileDamagedError(BadFileError):
    """A model folder has a file that is cut short, altered, or doesn't fit its config."""

    code = "model_file_damaged"


# ---- room and rights (6)
class ResourceError(AylluError):
    """Not enough memory or disk, or no right to write."""

    exit_code, code = 6, "resource"


class DiskFullError(ResourceError):
    """The disk (or the quota) is full; what was there before is untouched."""

    code = "disk_full"


class FolderReadOnlyError(ResourceError):
    """The folder can't be written."""

    code = "folder_read_only"


# ---- the task itself (1)
class PortInUseError(AylluError):
    """Another program listens on the address already."""

    code = "port_in_use"


class RunBusyError(AylluError):
    """Another process works in this run folder."""

    code = "run_busy"


class TrainingStoppedError(AylluError):
    """Training was stopped rather than waste hours: the message says what was seen."""

    code = "training_stopped"


# ---- refused for safety (8)
class RefusedError(AylluError):
    """What was asked would put the user or the machine at risk; the fix names the safe way."""

    exit_code, code = 8, "refused"


class ContaminationError(RefusedError):
    """What would be practised stands in a test set that the model is to be measured on."""

    code = "contamination"


# ---- requests to the engine and the server
class RequestError(AylluError):
    """A request that can't be served as it stands (HTTP 400)."""

    exit_code, code = 2, "invalid_request"


class ContextLengthError(RequestError):
    """Prompt and answer don't fit into the model's context. Nothing is ever cut silently."""

    code = "context_length_exceeded"


class GrammarFailedError(AylluError):
    """A constrained answer can't go on (a limit was reached, or no token fits); it is never let loose."""

    code = "grammar_failed"


class QueueFullError(AylluError):
    """Too many requests wait already (HTTP 503)."""

    code = "queue_full"


class EngineFailedError(AylluError):
    """The engine broke off in the middle of its work (HTTP 503)."""

    code = "engine_failed"


class ShuttingDownError(AylluError):
    """The server is ending; running answers are broken off after a grace time (HTTP 503)."""

    code = "shutting_down"


# ---- stopped by the user (130)
class RunStoppedError(AylluError):
    """Ctrl-C or a termination signal; what was done is kept, the message says how to go on."""

    exit_code, code = 130, "interrupted"
