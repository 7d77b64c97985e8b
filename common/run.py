"""Run one case of test/*.sh: output folder, log, signals, exit status and report. `run.py OPTIONS -- COMMAND`.

The shell side (common/test.sh) ends by becoming this program, so whoever signals the script signals this.
"""
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import bar, cli, environment, outputs, report, watchdog  # noqa: E402

_LAST_LINES = 20
_STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def main():
    """Run the case that the command line describes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until there is a training that can be told
    args = _parser().parse_args()
    environment.check_packages()
    log_path = os.path.join(args.output_path, "train_%s.log" % args.device_id)
    args.resume = args.resume or outputs.is_of_this_launch(log_path)  # torchrun starts it again
    metrics_path = os.path.join(args.output_path, "metrics.jsonl")
    images_per_step = args.batch_size * (args.ranks if args.batch_per_rank else 1)
    case = {"network": args.network, "batch_size": args.batch_size, "images_per_step": images_per_step, "ranks": args.ranks,
            "suffix": args.suffix, "kind": args.kind, "command": args.command, "commit": args.commit or None}
    undo = _prepare(args, [log_path] + ([] if args.no_report else report.files(case, args.output_path)))
    records_before = _size(metrics_path)
    started = time.time()
    with open(log_path, "ab") as log:
        training = _Training(args)
        status = training.wait(log)
    if status == cli.EXIT_BAD_INPUT and _size(metrics_path) == records_before:
        undo()
    if status == 0:
        _write(1, training.erase[1] + "\n".join(_report(args, case, metrics_path, time.time() - started) + [""]).encode())
    status, why = training.verdict(status, log_path)
    _write(2, training.erase[2] * bool(why) + why.encode(errors="surrogateescape"))
    sys.exit(status)


def _report(args, case, metrics_path, seconds):
    """Write the report; return what the screen shows of it."""
    if args.no_report:
        return ["this machine is done; the result is reported only on machine 0"]
    if not os.path.exists(metrics_path) or report.summary(metrics_path)[1] is None:
        raise cli.TrainingStopped("the run left no summary in %s; was the output path removed, or its records written elsewhere?" % metrics_path)
    return report.write(case, metrics_path, args.output_path, seconds)


def _parser():
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--network", required=True)
    parser.add_argument("--batch-size", type=cli.positive_int, required=True, help="over all ranks")
    parser.add_argument("--batch-per-rank", action="store_true", help="the batch size is that of one rank")
    parser.add_argument("--ranks", type=cli.positive_int, required=True)
    parser.add_argument("--suffix", required=True, help="acc, perf or eval: the end of the case's name")
    parser.add_argument("--kind", choices=("train", "finetune", "eval"), default="train")
    parser.add_argument("--commit", help="of this repository")
    parser.add_argument("--device-id", default="0", help="names the log")
    parser.add_argument("--output-path", required=True)
    parser.add_argument("--resume", action="store_true", help="go on with what the output path holds")
    parser.add_argument("--stall-timeout", type=cli.natural_int, default=600, help="seconds; 0: never")
    parser.add_argument("--no-report", action="store_true", help="the run's records are on another machine")
    parser.add_argument("--term-grace", type=cli.positive_int, default=25, help="seconds from SIGTERM to the kill")
    parser.add_argument("command", nargs="+", help="the training, after --")
    return parser


# --- the output folder ------------------------------------------------------------------------------------------------

def _prepare(args, products):
    """Hold the output folder, and move what an earlier run has left there into a folder of its own. `products`: what is written here, the
    log first.

    Returns a function that puts everything back: after bad input nothing was trained, so nothing is to be seen of it.
    """
    made, log_path = _missing_folders(args.output_path), products[0]
    # The other machines may share machine 0's path: their lock is another one, and they move nothing.
    held = outputs.hold(args.output_path, args.resume, ".run.lock" + ("." + socket.gethostname() if args.no_report else ""))
    is_new, had_log, size_of_log = not (args.resume or args.no_report), True, float("inf")

    def undo():
        if not had_log and os.path.exists(log_path):
            os.remove(log_path)
        elif _size(log_path) > size_of_log and not (args.no_report and os.path.exists(os.path.join(args.output_path, ".run.lock"))):
            os.truncate(log_path, size_of_log)
        held.undo()
        outputs.release()
        for folder in made:
            if not os.listdir(folder):
                os.rmdir(folder)

    try:
        with outputs.writing(args.output_path):
            if is_new:
                held.set_aside(keeps_weights=args.kind == "eval")
                args.command = list(map(held.where_now, args.command))
            had_log, size_of_log = os.path.lexists(log_path), _size(log_path)
            held.check(products, goes_on=not is_new)
            outputs.note(*products)
            open(log_path, "ab").close()
    except (cli.UserError, cli.TrainingStopped) as error:
        undo()
        raise cli.UserError(str(error))
    return undo


def _missing_folders(path):
    """Return the folders that have to be made for `path`, the innermost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


# --- the training process ---------------------------------------------------------------------------------------------

class _Training(object):
    """The process that trains, and its own. SIGINT kills them all, wherever they are: what lies on disk is whole after any kill.
    SIGTERM, and SIGHUP but under nohup, is passed on as SIGTERM, for them to save and leave; it kills --term-grace s later."""

    def __init__(self, args):
        self._args, self._stopped_by, self._log_error, self._has_said_why, self._stall = args, None, None, False, ""
        self._grace = args.term_grace
        self._checkpoint = os.path.join(args.output_path, "checkpoint.pth.tar")
        self._saved = _written_at(self._checkpoint)
        name = bar.terminal()
        self.erase = {number: bar.ERASE.encode() * bool(name and os.isatty(number)) for number in (1, 2)}
        self._process = subprocess.Popen(args.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                         env=dict(os.environ, **{bar.TERMINAL: name or ""}),
                                         preexec_fn=functools.partial(_begin, os.getpid()))
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN if signal.getsignal(number) == signal.SIG_IGN else self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def _stop(self, number, _):
        if self._stopped_by is None:
            self._saved = _written_at(self._checkpoint)
            signal.alarm(self._grace)
        self._stopped_by = number
        if number == signal.SIGINT:
            self._kill()
        elif self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def _kill(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end_stall(self, line):
        self._stall = line
        self._kill()

    def wait(self, log):
        """Return its status (negative: the signal that killed it) when its output is on ours and in the open file `log`."""
        copies = [threading.Thread(target=self._copy_lines, args=(source, log.fileno(), screen))
                  for source, screen in ((self._process.stdout, 1), (self._process.stderr, 2))]
        for copy in copies:
            copy.start()
        with watchdog.over_program(self._process.pid, self._args.stall_timeout, self._end_stall):
            status = self._process.wait()
        self._kill()  # workers that a crashed rank has left behind
        for copy in copies:
            copy.join()
        return status

    def _copy_lines(self, source, log, screen):
        has_reader = True
        for line in source:
            self._has_said_why |= screen == 2 and has_reader and b": error: " in line
            is_hidden, line = line.startswith(bar.MARK.encode()), line.lstrip(bar.MARK.encode())
            error = None if self._log_error else _write(log, line)
            if error:
                self._log_error = error
                self._kill()
            if has_reader and not is_hidden:
                has_reader = _write(screen, self.erase[screen] + line) is None

    def verdict(self, status, log_path):
        """Return the exit status and what to say about it: nothing where one line has said it."""
        if self._stall:
            return cli.EXIT_STOPPED, self._stall + "\n"
        if self._log_error and status != cli.EXIT_STOPPED:
            return cli.EXIT_STOPPED, "" if self._has_said_why else "cannot write %s (%s); the last checkpoint is kept\n" % (
                log_path, self._log_error.strerror)
        number = self._stopped_by or (signal.SIGTERM if status == cli.EXIT_TERMINATED else None)
        if number and (status <= 0 or status == cli.EXIT_TERMINATED):
            return 128 + number, "%s%s; log: %s\n" % (_STOPS[number], self._what_is_saved(status), log_path)
        if status < 0:
            return 128 - status, "the training %s; log: %s\n" % (cli.death(-status), log_path)
        if status in (0, cli.EXIT_BAD_INPUT, cli.EXIT_STOPPED) or status > 128:
            return status, ""
        with open(log_path, errors="replace") as log:
            last = log.readlines()[-_LAST_LINES:]
        return status, "training failed with status %d; the last lines of %s:\n%s" % (status, log_path, "".join(last))

    def _what_is_saved(self, status):
        late = self._stopped_by != signal.SIGINT and status == -signal.SIGKILL
        when = " when all was done" if status == 0 else " after --term_grace=%d s" % self._grace if late else ""
        if self._args.kind == "eval" or self._args.no_report:
            return when
        written = _written_at(self._checkpoint)
        if written > self._saved:
            return when + " after saving; go on with --resume"
        there = "--resume goes on from %s, saved %d s ago" % (self._checkpoint, time.time() - written)
        return when + " without saving; " + (there if written else "there is no checkpoint")


def _written_at(path):
    return os.stat(path).st_mtime if os.path.exists(path) else 0


def _begin(parent):
    """In the process that trains: let signals in, and end when the `parent` is killed outright (its ranks follow it)."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    cli.end_with(parent)


def _write(descriptor, content):
    """Write bytes past any buffer, which would keep what cannot be written; return the OSError, or None."""
    try:
        while content:
            content = content[os.write(descriptor, content):]
    except OSError as error:
        return error


if __name__ == "__main__":
    cli.run(main)
