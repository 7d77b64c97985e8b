"""The pictures of class folders, DIR/<class>/<picture>, and what may stand where one should. Takes no torch."""
import os
import stat

from common import packed
from common.cli import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def refuse(problem):
    """Raise a UserError."""
    raise UserError(problem)


def class_names(folder, tell=refuse):
    """Return the names of the class folders in ascending order, or of a packed folder's: the position is the class number.
    `tell(problem)` is called where there are none, or the folder cannot be listed."""
    if packed.is_packed(folder):
        return packed.read_index(folder)["classes"].tolist()
    complaints = []
    names = sorted(os.path.basename(path) for path in _listed(folder, complaints.append)[1])
    if not names:
        tell((complaints + ["%s has no class folders (wanted: %s/<class>/<image>)" % (folder, folder)])[0])
    return names


def pictures(root, class_name, tell=refuse):
    """Return the paths, from `root`, of a class's pictures, by the paths of their folders and then by their names. `tell(problem)` is
    called for a folder that cannot be listed or leads back to itself."""
    found = sorted(_walk(os.path.join(root, class_name), [os.stat(root)[1:3]], tell))
    return [os.path.join(os.path.relpath(folder, root), name) for folder, names in found for name in names]


def _walk(folder, above, tell):
    names, below = _listed(folder, tell)
    identity = os.stat(folder)[1:3] if below else None  # number and device; of what could be listed
    if identity in above:
        return tell("%s leads back to a folder that it is in; remove the link" % folder)
    yield folder, sorted(names)
    for path in below:
        yield from _walk(path, above + [identity], tell)


def _listed(folder, tell):
    """Return the names of the pictures in a folder, and the paths of the folders, links among them."""
    names, below = [], []
    try:
        for entry in os.scandir(folder):
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                below.append(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                names.append(entry.name)
    except OSError as error:
        tell("%s cannot be listed: %s" % (folder, error.strerror))
    return names, below


def read(path):
    """Return the bytes of a file. Raises OSError, also for what is none: a pipe would be waited for, and a device may have no end."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError("a pipe or a device, not a file")
        return stream.read()


def why(error):
    """Return what an exception of reading or decoding says, without the path that it was about."""
    return getattr(error, "strerror", None) or str(error).split(" <")[0] or type(error).__name__


def shown(path):
    """Return a path as a line can show it: with escapes for line feeds, and for bytes that are no UTF-8."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in path)
