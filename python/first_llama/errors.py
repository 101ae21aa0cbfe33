"""The one exception type that first-llama raises for problems that its user can mend."""


class FirstError(Exception):
    """A problem that the user can mend; the message is one line that says what to do."""
