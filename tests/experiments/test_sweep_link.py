"""What a trial tells its worker, and the answer that it waits for."""

import math
import threading

from experiments.sweep_link import Link, Listener


def test_every_value_gets_its_own_answer(tmp_path):
    listener, told, heard = Listener(tmp_path), [], []

    def listen():
        while len(heard) < 3:
            for step, value in listener.news():
                heard.append((step, value))
                listener.answer(value > 2)

    worker = threading.Thread(target=listen)
    worker.start()
    link = Link(tmp_path)
    told = [link.report(step, value) for step, value in ((0, 1.0), (1, 3.5), (4, 2.0))]
    worker.join()
    assert heard == [(0, 1.0), (1, 3.5), (4, 2.0)]
    assert told == [False, True, False]


def test_an_undefined_value_is_not_told_and_a_silent_worker_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.sweep_link.PATIENCE", 0.05)
    assert not Link(tmp_path).report(0, math.nan)
    assert Listener(tmp_path).news() == []
    assert not Link(tmp_path).report(1, 0.5)
    assert Listener(tmp_path).news() == [(1, 0.5)]


def test_half_a_line_is_not_read(tmp_path):
    (tmp_path / "reports.jsonl").write_text("[0, 1.5]\n[1, 2.", encoding="utf-8")
    listener = Listener(tmp_path)
    assert listener.news() == [(0, 1.5)]
    with (tmp_path / "reports.jsonl").open("a", encoding="utf-8") as file:
        file.write("5]\n")
    assert listener.news() == [(1, 2.5)]
