"""What can be wrong with a request, in the domain's words; the API turns each into a problem document.

RequestError
├── NotFound            nothing of that id or name that this account may see
├── VersionNotFound     the version does not exist, or the account may not use it
├── InvalidInput        the input does not fit the version's schema; carries the fields
├── Forbidden           this token may not do that
├── QueueFull           as many predictions wait as may wait
├── BadRoute            the route that it wishes cannot be used; carries the place of the fault
├── OverBudget          nothing may run it: its route refuses what the budget does not cover
├── ProviderAway        a provider that has to be asked does not answer
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


class BadRoute(RequestError):
    """The route of the request cannot be used; `place` says where in it ("": all of it), the text why."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(text)
        self.place = place


class OverBudget(RequestError):
    """No budget covers the run, and its route refuses it then; the text says which budget, and what to do."""


class ProviderAway(RequestError):
    """A provider that has to be asked does not answer now; the text says which, `retry_after_s` when to ask again."""

    def __init__(self, text: str, retry_after_s: float = 10.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Reused(RequestError):
    """The name of this request was used for another one."""
