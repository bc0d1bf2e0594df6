"""What the tables of these tests are written in."""

from rayprep.doctor.findings import State

GIB = 1 << 30
OK, WARN, FAIL = State.OK, State.WARN, State.FAIL
