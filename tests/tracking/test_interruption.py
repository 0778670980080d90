"""Signals that stop a training where it can be resumed."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tracking.interruption import STOP_SIGNALS, Interrupted, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_after_a_checkpoint(number: signal.Signals, training) -> None:
    before = [signal.getsignal(other) for other in STOP_SIGNALS]

    def stop(module, loss):
        assert [signal.getsignal(other) for other in STOP_SIGNALS] != before
        if module.global_step == 5:
            os.kill(os.getpid(), number)
        return loss

    with pytest.raises(Interrupted, match=f"fontanel fit --resume {training.logger.run_id}"):
        training.fit(epochs=9, trouble=stop)
    assert training.names() == ["best.ckpt", "step-00000004.ckpt", "step-00000006.ckpt"]
    assert [signal.getsignal(other) for other in STOP_SIGNALS] == before


def test_a_signal_amid_accumulated_batches_stops_after_them(training) -> None:
    def stop(module, loss):
        if module.trainer.fit_loop.epoch_loop.batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.raises(Interrupted):
        training.fit(epochs=9, trouble=stop, accumulate_grad_batches=2)
    assert training.names() == ["step-00000000.ckpt", "step-00000001.ckpt"]


def test_signals_are_as_before_a_training_that_ended_or_failed(training) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    training.fit(epochs=1)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before

    def explode(module, loss):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        training.fit(epochs=1, trouble=explode)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.fixture
def listening():
    stop = StopRequest()
    stop.listen()
    yield stop
    stop.restore()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_only_asks(number: signal.Signals, listening: StopRequest, capfd) -> None:
    assert not listening.requested
    os.kill(os.getpid(), number)
    assert listening.requested
    assert ("Ctrl-C again quits at once" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_the_scheduler_may_ask_twice(listening: StopRequest) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert listening.requested


def test_a_process_of_several_leaves_the_word_to_its_launcher(listening, capfd, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_listening_twice_and_restoring_twice() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    stop = StopRequest()
    for _ in range(2):
        stop.listen()
    for _ in range(2):
        stop.restore()
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_other_threads_are_never_asked() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    thread = threading.Thread(target=StopRequest().listen)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("wait", [lambda: time.sleep(60), lambda: sum(range(10**11)), signal.pause])
def test_a_second_ctrl_c_ends_it_whatever_it_waits_for(wait: Callable[[], object]) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        StopRequest().listen()
        os.kill(os.getpid(), signal.SIGINT)
        os.write(tell, b"y")
        try:
            wait()
        finally:
            os._exit(1)
    try:
        assert os.read(told, 1) == b"y", "the first one did not end it"
        time.sleep(0.1)
        began = time.monotonic()
        os.kill(child, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT
        assert time.monotonic() - began < 5
    finally:
        os.close(told)
        os.close(tell)
