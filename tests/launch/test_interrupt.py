"""Ctrl-C: first a request, then an order."""

import signal
import threading

import pytest

from normact.launch.interrupt import stop_on_interrupt


def test_the_first_signal_asks_and_the_second_insists():
    asked = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(lambda: asked.append(1)):
        signal.raise_signal(signal.SIGINT)
        assert asked == [1]
        signal.raise_signal(signal.SIGINT)
    assert asked == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_is_left_alone():
    entered = []

    def run():
        with stop_on_interrupt(lambda: None):
            entered.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [before]
