from mgc.core.progress import Progress


def test_what_was_done_before_counts_for_the_total_and_not_for_the_rate(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mgc.core.progress.time.monotonic", lambda: clock[0])
    progress = Progress("train", 40, "epochs")
    progress.resume(30)
    clock[0] = 10.0
    progress.advance(5, "loss 1")
    assert capsys.readouterr().err == "train: 35/40 epochs, 0.50/s, 0:10 elapsed, 0:10 left  loss 1\n"
