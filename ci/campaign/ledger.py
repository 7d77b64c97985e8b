"""The results file of a campaign: a line for each trial, so that an interrupted campaign goes on and a finished one is a table."""
import contextlib
import json
import os
import threading


class Ledger(object):
    """Trials of the programs `code` that were made with `seed`: {(verb, number): entry}."""

    def __init__(self, path, seed, code, again=False):
        self._path, self._seed, self._code = path, seed, code
        self._lock = threading.Lock()
        self._half_a_line = os.path.exists(path) and not again
        self._entries = {}
        if again and os.path.exists(path):
            os.remove(path)
        for entry in _read(path):
            if (entry["seed"], entry["code"]) == (seed, code):
                self._entries[entry["verb"], entry["number"]] = entry

    def has(self, verb, number):
        """Return whether this trial was made."""
        return (verb, number) in self._entries

    def add(self, verb, number, trial, **found):
        """Note a trial: `tried`, `unclean`, `seconds`, or `skipped`."""
        entry = dict(found, verb=verb, number=number, trial=trial, seed=self._seed, code=self._code)
        with self._lock:
            self._entries[verb, number] = entry
            with open(self._path, "a") as stream:
                stream.write("\n" * self._half_a_line + json.dumps(entry) + "\n")
            self._half_a_line = False

    def tried(self, verb):
        """Return how often it was tried."""
        return sum(entry["tried"] for entry in self._of(verb))

    def lines(self, verb):
        """Return what is to be said of a verb: the figures, then each trial that was not clean."""
        entries = self._of(verb)
        unclean = [entry for entry in entries if entry["unclean"]]
        tried, skipped = self.tried(verb), [entry["skipped"] for entry in entries if entry.get("skipped")]
        found = ["%s: tried %d, clean %d" % (verb, tried, tried - len(unclean))]
        found += ["  skipped %d: %s" % (skipped.count(why), why) for why in sorted(set(skipped))]
        for entry in unclean:
            again = "python -m ci.campaign %s --seed=%d --only=%d" % (verb, self._seed, entry["number"])
            found.append("  NOT CLEAN: %s\n    %s\n    again: %s" % (json.dumps(entry["trial"]), "; ".join(entry["unclean"]),
                                                                     again))
        return found

    def is_clean(self, verb):
        """Return whether something was tried and all of it was clean."""
        return not any(entry["unclean"] for entry in self._of(verb))

    def _of(self, verb):
        with self._lock:
            return [entry for (of, _), entry in sorted(self._entries.items()) if of == verb]


def _read(path):
    if not os.path.exists(path):
        return
    with open(path) as stream:
        for line in stream:
            with contextlib.suppress(ValueError):  # a campaign that was killed may have left half a line
                yield json.loads(line)
