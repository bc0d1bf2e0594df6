"""How the processes that a stage started were ended."""

from rayprep.model.base import Record


class Cleanup(Record):
    """The contract's `cleanup`. `killed`: all of them are gone."""

    kill_sent: bool
    killed: bool
    timeout_s: float
