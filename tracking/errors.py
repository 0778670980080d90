"""What can be wrong with a store or a run."""


class StoreError(ValueError):
    """A store or a run that cannot be used; says which one and what to do.

    Args:
        message: What, where, and what to do.
        permanent: Whether trying again is of no use; false for a server that does not answer now.
    """

    def __init__(self, message: str, *, permanent: bool = True) -> None:
        super().__init__(message)
        self.permanent = permanent


class RunWarning(UserWarning):
    """Something about a run that its user should know, while the run goes on."""
