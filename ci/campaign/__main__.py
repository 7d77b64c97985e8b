"""Try to break the scripts, and list what did not end cleanly.

`python -m ci.campaign` runs all verbs in full (40 minutes on two cores), `python -m ci.campaign kills signals` two of them. It
goes on where an earlier call was interrupted, as long as the programs under test are the same; --again forgets. The exit status is
1 where something was not clean.
"""
import concurrent.futures
import importlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

from ci.campaign.ledger import Ledger
from ci.campaign.world import Skipped, World, of_this_code
from common import cli

VERBS = ("inputs", "kills", "signals", "deaths", "disks", "faults")


def main():
    """Run the verbs of the command line and print what was found."""
    args = _parser().parse_args()
    unknown = sorted(set(args.verbs) - set(VERBS))
    if unknown:
        raise cli.UserError("there is no verb %s; there are %s" % (unknown[0], ", ".join(VERBS)))
    verbs = args.verbs or VERBS
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the trials that have begun are ended, disks unmounted
    os.makedirs(args.work, exist_ok=True)
    ledger = Ledger(os.path.join(args.work, "results.jsonl"), args.seed, of_this_code(), args.again)
    world = World(os.path.join(args.work, of_this_code()))
    for verb in verbs:
        _Campaign(verb, args, ledger, world).run()
        print("\n".join(ledger.lines(verb)), flush=True)
    sys.exit(0 if all(ledger.is_clean(verb) for verb in verbs) else cli.EXIT_FAILED)


def _parser():
    parser = cli.Parser(prog="python -m ci.campaign", description=__doc__)
    parser.add_argument("verbs", nargs="*", metavar="VERB", help="of %s; none: all" % ", ".join(VERBS))
    parser.add_argument("--short", action="store_true", help="the few trials of CI")
    parser.add_argument("--count", type=cli.positive_int, help="trials of each verb (default: the verb's own)")
    parser.add_argument("--seconds", type=cli.positive_int, help="start no trial of a verb after so many seconds")
    parser.add_argument("--seed", type=cli.natural_int, default=1, help="of what is drawn")
    parser.add_argument("--only", type=cli.natural_int, help="this trial alone, whether or not it was made; its folder stays")
    parser.add_argument("--again", action="store_true", help="forget what an earlier campaign found")
    parser.add_argument("--jobs", type=cli.positive_int, default=2, help="trials at the same time")
    parser.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "campaign"),
                        help="work folder, outside of shared memory")
    return parser


class _Campaign(object):
    """The trials of one verb."""

    def __init__(self, verb, args, ledger, world):
        self._verb, self._args, self._ledger, self._world = verb, args, ledger, world
        self._module = importlib.import_module("ci.campaign." + verb)
        self._count = args.count or (self._module.SHORT if args.short else self._module.LONG)
        self._end = time.time() + (args.seconds or float("inf"))

    def run(self):
        """Make the trials that the ledger has not, until there are as many as asked for."""
        numbered = enumerate(self._module.trials(self._args.seed, self._world))
        if self._args.only is not None:
            numbered = itertools.islice(numbered, self._args.only, self._args.only + 1)
        else:
            numbered = (pair for pair in numbered if not self._ledger.has(self._verb, pair[0]))
        waiting = set()
        with concurrent.futures.ThreadPoolExecutor(self._args.jobs) as pool:
            for number, trial in numbered:
                while len(waiting) >= self._args.jobs:
                    waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)[1]
                enough = self._ledger.tried(self._verb) + len(waiting) >= self._count
                if time.time() > self._end or (enough and self._args.only is None) or self._given_up(number):
                    break  # (trials that come too late, or that cannot be made here, do not count)
                waiting.add(pool.submit(self._make, number, trial))

    def _given_up(self, number):
        return self._args.only is None and number >= 5 * self._count

    def _make(self, number, trial):
        place = os.path.join(self._world.folder, "%s-%d-%d" % (self._verb, self._args.seed, number))
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        started = time.time()
        found = {"tried": 1, "unclean": []}
        try:
            found["unclean"] = self._module.attempt(trial, place, self._world)
            found["tried"] = trial.pop("tried", 1)
        except Skipped as reason:
            found.update(tried=0, skipped=str(reason))
        except Exception:  # the campaign's own defect: to be seen, and not the end of all other trials
            found["unclean"] = ["the trial itself failed: %s" % traceback.format_exc()]
        if self._args.only is None:
            shutil.rmtree(place, ignore_errors=True)
        self._ledger.add(self._verb, number, trial, seconds=round(time.time() - started, 1), **found)
        if found["unclean"]:
            print("%s %d: %s" % (self._verb, number, "; ".join(found["unclean"])[:400]), flush=True)


if __name__ == "__main__":
    cli.run(main)
