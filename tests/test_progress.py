"""What the screen says of work under way, where there is no terminal."""

from slmkit.cli import out


def test_progress_says_how_long_is_left(monkeypatch):
    screen, said = out.Terminal(), []
    screen.bars = False
    monkeypatch.setattr(screen, "_write", said.append)
    now = [0.0]
    monkeypatch.setattr(out.time, "monotonic", lambda: now[0])
    tell = screen.progress("sft")
    for done, at in ((10, 1000.0), (20, 1100.0), (40, 1300.0)):
        now[0] = at
        tell(done, 100, "training", loss=1.5)
    assert said == ["sft: training 10/100  loss 1.5", "sft: training 20/100  loss 1.5  0:13:20 left", "sft: training 40/100  loss 1.5  0:10:00 left"]
    now[0] = 1400.0
    tell(5, None, "answers")
    assert said[-1] == "sft: answers 5"
