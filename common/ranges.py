"""Ranges of numbers: each is said once, by whoever takes the number."""
import argparse
import numbers

_MOST = 10 ** 9  # of whatever is counted: more is a slip of the hand, and fits into no memory


class Range(object):
    """The numbers from `low` to `high`; with the `ends` "[)" the second one is left out. `whole`: integers alone. Neither infinity
    nor NaN is in any range. An argparse type, which --help shows (cli.Parser), and by `complaint` the test of a configuration or of
    a checkpoint."""

    def __init__(self, low, high=float("inf"), ends="[)", whole=False):
        self.low, self.high, self.ends, self.whole = low, high, ends, whole
        self._kind = "an integer" if whole else "a number"

    def __contains__(self, value):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.whole else numbers.Real):
            return False
        return (self.low < value < self.high or value == self.low and self.ends[0] == "["
                or value == self.high and self.ends[1] == "]")

    def __call__(self, text):
        """Return the number that `text` says."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = None
        if value not in self:
            raise argparse.ArgumentTypeError("%.99r is not %s" % (text, self))
        return value

    def __str__(self):
        if self.ends == "[]":
            return "%s from %s to %s" % (self._kind, self.low, self.high)
        low = (" of at least %s" if self.ends[0] == "[" else " above %s") % self.low
        return self._kind + low + (" and below %s" % self.high if self.high < float("inf") else "")

    def in_help(self):
        """Return what --help says: a bound that nobody meets but by a slip is for errors alone."""
        return "%s of at least %d" % (self._kind, self.low) if self.high == _MOST else str(self)


def whole(low, high=_MOST):
    """Return the Range of the integers from `low` to `high`."""
    return Range(low, high, "[]", whole=True)


natural, positive = Range(0), Range(0, ends="()")
fraction, share = Range(0, 1, "[]"), Range(0, 1)
count, size, seed = whole(0), whole(1), whole(0, 2 ** 32 - 1)  # the seeds that NumPy takes
device, port, workers = whole(0, 1023), whole(1, 65535), whole(0, 4096)


def complaint(values, ranges, lists=False):
    """Return a few words on the first of `values` that is outside its range, None where there is none; names that it lacks are passed
    over. `lists`: a value may be a list of numbers."""
    for name, allowed in ranges.items():
        found = values.get(name)
        each = found if lists and isinstance(found, (list, tuple)) else [found]
        if name in values and not all(number in allowed for number in each):
            return "%s %.99r: has to be %s" % (name, found, allowed)
    return None
