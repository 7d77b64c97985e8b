"""How the ranks of a training leave together when SIGTERM has come to one of them, with a checkpoint."""
import signal
import time

from common import cli, distributed

# How often the ranks tell each other of a SIGTERM: with a step before and one after, they leave within 10 s. However short the
# steps are, so many at the most: the next ones may be longer.
_SECONDS_BETWEEN_SUMS, _STEPS_BETWEEN_SUMS = 3, 100


class Preemption(object):
    """Whether SIGTERM has come to a rank: a handler of that signal. Before it `listens`, and in what is no training, SIGTERM ends a process
    at once. `save()` writes the checkpoint; every rank calls it."""

    def __init__(self, rank, save):
        self._rank, self._save, self.seen, self._agreed = rank, save, False, False
        self._answer, self._steps, self._left, self._since = None, 1, 1, time.monotonic()

    @staticmethod
    def listening():
        """Return the one that notes SIGTERM in this process, None where that ends it."""
        handler = signal.getsignal(signal.SIGTERM)
        return handler if isinstance(handler, Preemption) else None

    def listen(self):
        """From now on, SIGTERM is noted: `seen`. Every rank calls."""
        signal.signal(signal.SIGTERM, self)
        distributed.barrier(self._rank)  # it still ends a rank that is not here, and with it all

    def __call__(self, *_):
        self.seen = True

    def agreed(self, clock):
        """Return whether to leave after this step; every rank asks after each, and all get the same answer.

        A sum over the ranks, under way while they take a step and read after it, says who has seen the signal; and in how many
        steps the next sum begins, by rank 0's clock alone: a collective is begun by all or by none. It carries each rank's times too.
        """
        if self._rank.world_size == 1:
            return self.seen
        if self._answer:
            seen, self._steps, *clock.of_ranks = self._answer()
            self._answer, self._agreed, self._left = None, self._agreed or seen > 0, self._steps
        self._left -= 1
        if self._left <= 0:
            steps = int(_SECONDS_BETWEEN_SUMS * self._steps / max(time.monotonic() - self._since, 1e-9))
            self._since = time.monotonic()
            values = [self.seen, self._rank.is_main * min(max(steps, 1), _STEPS_BETWEEN_SUMS)] + [0] * (2 * self._rank.world_size)
            values[2 + 2 * self._rank.rank:4 + 2 * self._rank.rank] = clock.own_time, clock.data_time.val
            self._answer = distributed.begin_sum(values, self._rank)
        return self._agreed

    def leave_if_asked(self):
        """`leave` where a rank has seen the signal; every rank has to call."""
        if distributed.sum_over_ranks([self.seen], self._rank)[0]:
            self.leave()

    def leave(self):
        """Save, and raise Terminated; every rank has to call."""
        self._save()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        distributed.barrier(self._rank)  # a launcher may end every rank as soon as one has ended
        raise cli.Terminated()
