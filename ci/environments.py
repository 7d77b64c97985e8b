"""Virtual environments on top of the one that runs the tests, for what is installed in the course of a test."""
import os
import subprocess
import sysconfig
import venv

OUTSIDE = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTHONPATH", "NPU_SIM_REQUIRE")}


def run(*command, cwd=None, **environment):
    """Run a command that finds the simulator only where it is installed; return the finished process, output as text."""
    return subprocess.run([str(part) for part in command], cwd=cwd and str(cwd), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(OUTSIDE, OMP_NUM_THREADS="1", **environment), universal_newlines=True)


class Environment:
    """An environment in `folder` (a pathlib.Path) that has what this one has; made where it is not there."""

    def __init__(self, folder):
        self.bin = folder / "bin"
        if not (self.bin / "python").exists():
            venv.create(str(folder), with_pip=False)
        (self.site,) = (folder / "lib").glob("python*/site-packages")
        (self.site / "outer.pth").write_text(sysconfig.get_path("purelib"))

    def python(self, *arguments, **keywords):
        """Run its Python; return the finished process."""
        return run(self.bin / "python", *arguments, **keywords)

    def install(self, *what):
        """`pip install` of what the arguments say."""
        done = self.python("-m", "pip", "install", "--quiet", *what)
        assert done.returncode == 0, done.stderr
