"""What git says of a checkout."""
import os
import subprocess


def git(folder, *words):
    """Return what `git WORDS` prints in the checkout `folder`; None without git, and where the folder is no checkout itself."""
    above = os.path.dirname(os.path.realpath(folder))  # a checkout around it does not answer for it
    try:
        done = subprocess.run(("git", "-C", folder) + words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True,
                              env=dict(os.environ, GIT_CEILING_DIRECTORIES=above))
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
