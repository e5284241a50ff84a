"""How far long work is: lines in a log, a bar on a terminal."""

from rich.console import Console

from scaling.console import counting, lines


def test_a_log_has_a_line_in_each_tenth_with_the_rate_and_the_time_left():
    seconds, said = iter([0.0, 1.0, 1.5, 50.0, 50.1, 100.0]), []
    count = lines("spectra", said.append, clock=lambda: next(seconds))
    for done in (20_000, 30_000, 50_000, 50_010, 100_000):
        count(done, 100_000)
    assert said == [  # none in the first two seconds, and none for the same tenth
        "spectra 50,000/100,000, 1,000 a second, about 50 s left",
        "spectra 100,000/100,000, 1,000 a second",
    ]


def test_slow_work_and_an_empty_one_have_a_rate_too():
    seconds, said = iter([0.0, 1200.0, 1300.0]), []
    count = lines("shards", said.append, clock=lambda: next(seconds))
    count(30, 300)
    count(0, 0)
    assert said == ["shards 30/300, 0.025 a second, about 3.0 h left"]


def test_a_terminal_has_a_bar_instead(monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "120")
    said = []
    with counting("spectra", said.append) as count:
        for done in range(0, 101, 50):
            count(done, 100)
    shown = capsys.readouterr().err
    assert "spectra" in shown
    assert "100/100" in shown
    assert " a second" in shown
    assert not said
