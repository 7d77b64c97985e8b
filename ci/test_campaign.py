"""The short form of the campaign with narrow networks, a verb at a time, and that the campaign sees what is not clean."""
import os
import signal
import socket
import subprocess
import sys

import pytest

from conftest import ROOT, environment

pytestmark = pytest.mark.skipif(not hasattr(socket, "send_fds") or not hasattr(sys, "addaudithook"), reason="needs Python 3.9")


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """The folder that the verbs share: undisturbed runs are made once."""
    return str(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("verb", ["inputs", "kills", "signals", "deaths", "disks", "faults"])
def test_short_campaign(verb, work):
    """Whatever a seed throws at the scripts ends cleanly: see ci/campaign/VERB.py for what that is."""
    done = subprocess.run([sys.executable, "-m", "ci.campaign", verb, "--short", "--work", work], cwd=ROOT, env=environment(NARROW="1"),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=600)
    assert done.returncode == 0 and "%s: tried " % verb in done.stdout, done.stdout[-6000:]


def finished(tmp_path, code, statuses, words=()):
    """Return what the campaign says of a program that is the text `code`."""
    from ci.campaign import process
    return process.Run([sys.executable, "-c", code], str(tmp_path)).finish(patience_s=0.5).unclean(statuses, words)


@pytest.mark.parametrize("code, statuses, word", [
    ("import sys; sys.stderr.write('x.py: error: no such file /y'); sys.exit(2)", [2], None), ("print('done')", [0], None),
    ("import sys; sys.stderr.write('x.py: error: no'); sys.exit(3)", [2], "status 3, not 2"),
    ("import sys; sys.exit(2)", [2], "0 lines"),
    ("1 / 0", [1], "traceback"), ("import sys; sys.stderr.write('a\\nb'); sys.exit(2)", [2], "2 lines"),
    ("import sys; sys.stderr.write('error'); sys.exit(2)", [2], "has none of: /y"),
    ("import subprocess, sys; subprocess.Popen(['sleep', '60'])", [0], "leaves")])
def test_what_is_not_clean_is_seen(tmp_path, code, statuses, word):
    """Each rule of a clean end can be broken: a campaign that sees nothing proves nothing."""
    found = finished(tmp_path, code, statuses, ["/y"] if word is None or "/y" in word else ())
    assert bool(found) == (word is not None) and (word is None or word in " ".join(found)), found


def test_what_hangs_is_seen_and_ended(tmp_path):
    """A run that does not end is one that is not clean, and is killed."""
    from ci.campaign import process
    run = process.Run(["sleep", "60"], str(tmp_path), limit_s=0.5)
    assert "hangs" in run.finish().unclean([0])[0] and run.process.poll() == -signal.SIGKILL


def test_kill_at_a_file(tmp_path):
    """The hook kills before the k-th file of the output folder is written: the file before is there, the next is not."""
    from ci.campaign import kills
    sleeper = subprocess.Popen(["sleep", "60"])
    (tmp_path / "pid").write_text(str(sleeper.pid))
    (tmp_path / "out").mkdir()
    code = "for k in range(1, 5): open(%r %% k, 'w').close()" % str(tmp_path / "out" / "%d")
    status = subprocess.call([sys.executable, "-c", code], env=kills.killing(str(tmp_path / "pid"), str(tmp_path / "out"), 3, 0))
    assert (status, sleeper.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    assert sorted(os.listdir(str(tmp_path / "out"))) == ["1", "2"]


def test_what_is_killed_has_the_network_of_the_others(monkeypatch):
    """Defect: with narrow networks, a run that was killed at a file had the full one, and the next could not read its checkpoint."""
    from ci.campaign import kills
    monkeypatch.setenv("NARROW", "1")
    code = "import torch; print(torch.nn.Conv2d(16, 16, 1).out_channels)"
    assert subprocess.check_output([sys.executable, "-c", code], env=kills.killing("pid", "out", 3, 0)) == b"2\n"


def test_the_ledger_goes_on(tmp_path):
    """What was made is not made again, unless the programs, or the seed, are others; half a line of a killed campaign is none."""
    from ci.campaign.ledger import Ledger
    path = str(tmp_path / "results.jsonl")
    first = Ledger(path, 1, "code")
    first.add("kills", 0, {"model": "GENet"}, tried=6, unclean=[])
    first.add("kills", 1, {"model": "GENet"}, tried=2, unclean=["status 1, not 0"])
    with open(path, "a") as stream:
        stream.write('{"verb": "kills", "num')
    again = Ledger(path, 1, "code")
    assert again.has("kills", 1) and again.tried("kills") == 8 and not again.is_clean("kills")
    assert again.lines("kills")[0] == "kills: tried 8, clean 7" and "--only=1" in again.lines("kills")[1]
    again.add("kills", 2, {}, tried=1, unclean=[])
    assert Ledger(path, 1, "code").tried("kills") == 9
    assert not Ledger(path, 2, "code").has("kills", 1) and not Ledger(path, 1, "other").has("kills", 1)
    assert not Ledger(path, 1, "code", again=True).has("kills", 1)


def test_trials_are_those_of_the_seed(tmp_path):
    """The same seed gives the same trials, so that a finding can be repeated by its number."""
    import itertools
    from ci.campaign import deaths, disks, faults, kills, signals
    from ci.campaign.world import World
    for verb in (deaths, disks, faults, kills, signals):
        drawn = [list(itertools.islice(verb.trials(seed, World(str(tmp_path))), 30)) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len({trial["model"] for trial in drawn[0]}) == 5
