"""What every model shares. Each module is small and has one reason to change; none knows a model."""
import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def lacking(error):
    """Return the line for an ImportError of a package that this Python lacks, or has but half; None for one of a module of ours."""
    if (error.path or "").startswith(_ROOT + os.sep):
        return None
    program = os.path.relpath(os.path.abspath(sys.argv[0]), _ROOT).split(os.sep)[0]  # else run.py, in the folder of a model
    version = getattr(sys.modules.get("torch"), "__version__", "2.x")[:3]
    files = [os.path.join(folder, name) for folder in (os.path.join(_ROOT, program), os.getcwd())
             for name in (version + "_requirements.txt", "2.x_requirements.txt", "requirements.txt")]
    return "%s has not all packages: %s; install it, or all that %s lists" % (
        sys.executable, error, next(filter(os.path.exists, files), "the requirements file"))


def _end(kind, error, trace):
    from common import cli
    if not isinstance(error, ImportError) or lacking(error) is None:
        return sys.__excepthook__(kind, error, trace)
    cli.complain(lacking(error))
    sys.exit(cli.EXIT_BAD_INPUT)


sys.excepthook = _end  # of imports, which come before any cli.run
