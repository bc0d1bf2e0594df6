"""How a warm-up server is ended, with all that it has started."""

import pytest

from rayprep.base.errors import Interrupted
from tests.processes import alive, wait_for
from tests.server.bench import Bench, fault


def test_being_cancelled_ends_it(bench: Bench) -> None:
    with pytest.raises(Interrupted), bench.server(*fault("never-ready")) as server:
        bench.cancelled = lambda: server.reader.ready is False and server.reader.memory_pool_ended
        server.start()
    assert server.cleanup is not None
    assert server.cleanup.killed


def test_one_that_refuses_term_is_killed(bench: Bench) -> None:
    with bench.server(*fault("deaf")) as server:
        server.start()
        tree = bench.left()
        cleanup = server.end()
        assert alive(tree) == []
    assert (cleanup.kill_sent, cleanup.killed, cleanup.timeout_s) == (True, True, 0.5)


def test_daemons_of_its_own_are_ended_too(bench: Bench) -> None:
    with bench.server(*fault("daemons")) as server:
        server.start()
        wait_for(lambda: len(bench.left()) == 4, "a guard, the server and two daemons")
        server.end()
        assert bench.left() == []


def test_a_server_that_was_never_started_ends_well(bench: Bench) -> None:
    with bench.server() as server:
        assert server.end().killed
    assert (server.cleanup, server.pid, server.log_tail()) == (None, None, ())
