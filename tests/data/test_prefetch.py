"""Work ahead of time changes when something is computed, never what."""

import threading
import time

import pytest

from meanaudio.data.prefetch import Prefetcher


def test_it_is_the_function_in_any_order_of_steps():
    prefetcher = Prefetcher(lambda step: step * step, ahead=3, threads=2)
    steps = [0, 1, 2, 7, 3, 3, 100, 0]
    assert [prefetcher(step) for step in steps] == [step * step for step in steps]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_next_steps_are_computed_while_the_caller_is_busy(ahead):
    done = []
    prefetcher = Prefetcher(lambda step: done.append(step) or step, ahead=ahead)
    for step in range(4):
        assert prefetcher(step) == step
        deadline = time.monotonic() + 10
        while len(done) < step + 1 + ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert done == list(range(step + 1 + ahead))  # each once, in order, and not one more


def test_the_caller_waits_only_for_what_is_not_ready():
    release = threading.Event()
    prefetcher = Prefetcher(lambda step: step == 0 or release.wait(10), ahead=1)
    prefetcher(0)
    waited = prefetcher.waited
    threading.Timer(0.2, release.set).start()
    prefetcher(1)
    assert 0.1 < prefetcher.waited - waited < 5
    time.sleep(0.1)
    waited = prefetcher.waited
    prefetcher(2)
    assert prefetcher.waited - waited < 0.1


def test_an_error_comes_at_its_step_and_the_others_go_on():
    def fn(step):
        if step == 2:
            raise ValueError("step two")
        return step

    prefetcher = Prefetcher(fn, ahead=4)
    assert [prefetcher(0), prefetcher(1)] == [0, 1]
    with pytest.raises(ValueError, match="step two"):
        prefetcher(2)
    assert prefetcher(3) == 3


def test_nothing_is_computed_from_the_end_on():
    done = []
    prefetcher = Prefetcher(lambda step: done.append(step), ahead=5, stop=3)
    for step in range(3):
        prefetcher(step)
    prefetcher.close()
    assert done == [0, 1, 2]


def test_threads_end_with_their_prefetcher():
    before = threading.active_count()
    prefetcher = Prefetcher(lambda step: step, threads=3)
    prefetcher(0)
    assert threading.active_count() > before
    del prefetcher
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
