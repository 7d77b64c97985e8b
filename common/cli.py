"""Command lines and errors for people: one line on stderr, exit status 2, no traceback."""
import argparse
import contextlib
import ctypes
import os
import re
import signal
import sys

from common import lacking, ranges

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what would be right."""

    status = EXIT_BAD_INPUT


class Terminated(Exception):
    """SIGTERM has ended the run; what a training had to save is saved."""


class TrainingStopped(Exception):
    """Something went wrong in the middle of a run. The message is one line: what, where, and which checkpoint there is to go on from
    (`kept`, which progress keeps up to date)."""

    status, kept = EXIT_STOPPED, ""

    def __str__(self):
        return super().__str__() + self.kept


class RankFailed(Exception):
    """A rank crashed or was killed; `status` is that of the run."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and `--a_b` the same flag as `--a-b`."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, with every underscore in the name of a long flag read as a hyphen."""
        args = sys.argv[1:] if args is None else args
        args = [re.sub("^--[^=]*", lambda name: name.group().replace("_", "-"), text) for text in args]
        return super().parse_known_args(args, namespace)

    def _get_option_tuples(self, option_string):
        # Not allow_abbrev=False: on Python 3.7 that refuses a short flag with its value (-j0) as well.
        return [] if option_string.startswith("--") else super()._get_option_tuples(option_string)

    def error(self, message):
        """End the process with one line and the status of bad input."""
        self.exit(EXIT_BAD_INPUT, "%s: error: %s (see --help)\n" % (self.prog, " ".join(message.split())))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default where that is a value, and of a number the range."""

    def _get_help_string(self, action):
        says_nothing = action.default in (None, "") or action.default is False
        shown = "; %s" % action.type.in_help() if isinstance(action.type, ranges.Range) else ""
        return (action.help if says_nothing else super()._get_help_string(action)) + shown


positive_int, natural_int = ranges.size, ranges.count


def file_name(text):
    """argparse type: a name without a folder, so that what is written stays where it belongs."""
    if text in ("", ".", "..") or os.path.basename(text) != text or not text.isprintable():
        raise argparse.ArgumentTypeError("%r is not the name of a file without its folder" % text)
    return text


def new_file(path):
    """Return a file of ours, open for writing bytes, in the place of one that is there: a link that others have put there is not
    followed. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return open(path, "xb")


def boolean(text):
    """argparse type: true/false, yes/no, on/off or 1/0, in any case."""
    words = {"true": True, "yes": True, "on": True, "1": True,
             "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError("%r is neither true nor false" % text)
    return words[text.lower()]


def int_list(text):
    """argparse type: distinct device numbers separated by commas, returned in ascending order."""
    values = sorted(ranges.device(word) for word in text.split(","))
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError("%r is not a list of distinct device numbers such as 0,1,2,3" % text)
    return values


def end_with(parent):
    """Have the kernel kill this process when the process `parent`, which has started it, is killed outright."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it has just been
        os._exit(128 + signal.SIGKILL)


_status = None


def run(main):
    """Call `main()` and end the process with the exit status that its outcome deserves.

    0 done; 1 a rank failed, 128 + n was killed by signal n; 2 bad input (UserError); 3 stopped in the middle (TrainingStopped);
    130 Ctrl-C; 143 SIGTERM. Any other exception keeps its traceback.
    """
    global _status
    _status = status_of(main, complain)
    sys.exit(_status)


def leave_at_once():
    """End the process with the status that `run` has settled, without the destructors of libraries. For atexit."""
    if _status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)


def status_of(main, report):
    """Return the exit status for the outcome of `main()`; `report` is given the text of an error that is for people."""
    # A shell starts background jobs with SIGINT ignored, and Python then leaves it so: Ctrl-C would not reach us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        return 0
    except (UserError, TrainingStopped, RankFailed) as error:
        report(str(error))
        return error.status
    except ImportError as error:
        if lacking(error) is None:
            raise
        report(lacking(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED


def death(number):
    """Return what is said of a process that a signal has killed."""
    hint = "; where nobody sent it, memory ran out: take fewer --workers or a smaller --batch_size" if number == signal.SIGKILL else ""
    return "was killed by signal %d%s" % (number, hint)


def print_line(text):
    """Print a line in one piece: the lines of several ranks may not run into each other on the stdout that they share."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(message):
    """Write one error line to stderr."""
    sys.stderr.write("%s: error: %s\n" % (os.path.basename(sys.argv[0]), " ".join(message.split())))
    sys.stderr.flush()
