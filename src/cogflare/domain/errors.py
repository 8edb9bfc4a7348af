"""What can be wrong with a request, in the domain's words; the API turns each into a problem document.

RequestError
├── NotFound            nothing of that id or name that this account may see
├── VersionNotFound     the version does not exist, or the account may not use it
├── InvalidInput        the input does not fit the version's schema; carries the fields
├── Forbidden           this token may not do that
├── QueueFull           as many predictions wait as may wait
└── Reused              the name of this request was used for another one
"""

from cogflare.domain.inputs import FieldProblem


class RequestError(Exception):
    """The request cannot be carried out; nothing was changed."""


class NotFound(RequestError):
    """The requested resource could not be found."""


class VersionNotFound(RequestError):
    """The specified version does not exist (or perhaps you don't have permission to use it?)"""


class InvalidInput(RequestError):
    """The input does not fit the version's schema."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__(f"{len(problems)} fields of the input are not valid")
        self.problems = problems


class Forbidden(RequestError):
    """This token may not do that."""


class QueueFull(RequestError):
    """As many predictions wait as may wait; the text says whose, and what to do."""


class Reused(RequestError):
    """The name of this request was used for another one."""
