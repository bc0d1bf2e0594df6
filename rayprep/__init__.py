"""rayprep: nothing left to compile, to tune or to doubt when a benchmark campaign starts."""

__version__ = "0.1.0"


def umask_for(inherited: int) -> int:
    """Let the group write, as the contract has it, but for a user whose umask takes everything from the group.

    What the user's umask takes from all others stays taken.
    """
    private = inherited & 0o070 == 0o070
    return 0o002 | inherited & 0o007 | (0o070 if private else 0)
