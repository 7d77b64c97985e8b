"""From the form of a golden file to its numbers: what is a result is taken out, and made anew."""
import copy
from collections import ChainMap, namedtuple

from tqdm import tqdm

from common import cli

# What is made together. path: to the objects that hold it ("" is the file, "variants.*" each network); names: of the results in such an
# object; make: f(upstream, settings, form) -> {name: value} (None: this object has none), where `settings` is the object without any
# result, and behind it what it lies in, and `form` is {name: what `skeleton` leaves of the result that stands there now}.
Entry = namedtuple("Entry", "path names make")


def checked(entries, only):
    """Raise UserError where one of the words `only` names no result of the Entries."""
    for word in only or ():
        if not any(is_named(entry, [word]) for entry in entries):
            raise cli.UserError("--only %s: the entries are %s" % (word, ", ".join(sorted(set(full_names(entries))))))


def full_names(entries):
    """Return the names of all results: `variants.*.train_losses`."""
    return [".".join(part for part in (entry.path, name) if part) for entry in entries for name in entry.names]


def is_named(entry, only):
    """Whether a result of an Entry is, or is below, one of the words `only` (None: all are)."""
    return only is None or any((name + ".").startswith(word + ".") for name in full_names([entry]) for word in only)


def make(form, maker, upstream, only=None, variants=None):
    """Return (golden file, number of results) of the form of an earlier one, by a module of this folder.

    No result is taken over from there: those that `only` names (None: all) are computed, the others and what the module does not make are
    left out. What is no result (inputs, settings, notes) stays.

    variants: of which networks (their `arch`), the others are left out; None for all.
    """
    checked(maker.ENTRIES, only)
    made, count = copy.deepcopy(form), 0
    asked = of_archs(made["variants"], variants) if variants else made.get("variants", [])
    others = [network for network in made.get("variants", []) if network not in asked]  # whose settings a component may name
    todo = [(entry, holder, taken_out(holder.maps[0], entry.names)) for entry in maker.ENTRIES for holder in holders(made, entry.path)]
    for name in maker.NOT_MADE:
        for holder in holders(made, name.rpartition(".")[0]):
            taken_out(holder.maps[0], [name.rpartition(".")[2]])
    for entry, holder, old in tqdm(todo, desc="computing", disable=None):
        if is_named(entry, only) and not any(each is other for each in holder.maps for other in others):
            results = {name: value for name, value in entry.make(upstream, holder, old).items() if value is not None}
            holder.update(results)
            count += len(results)
    if others:
        made["variants"], form = asked, dict(form, variants=of_archs(form["variants"], variants))
    return ordered(made, form), count


def of_archs(networks, archs):
    """Return the networks with one of these `arch`, or, for an arch of none, those whose arch begins so. Raises UserError where none does."""
    found = []
    for arch in archs:
        own = [each for each in networks if each["arch"] == arch] or [each for each in networks if each["arch"].startswith(arch)]
        if not own:
            raise cli.UserError("--variants %s: the networks are %s" % (arch, "; ".join(each["arch"] for each in networks)))
        found += own
    return [each for each in networks if each in found]


def holders(node, path, above=()):
    """Yield the objects at a path, each as a ChainMap of it and of the objects that it lies in."""
    above = (node,) + above if isinstance(node, dict) else above
    head, _, rest = path.partition(".")
    if head == "":
        yield ChainMap(*above)
        return
    children = [node[head]] if head in node else [] if head != "*" else list(node.values()) if isinstance(node, dict) else node
    for child in children:
        if isinstance(child, (dict, list)):
            yield from holders(child, rest, above)


def taken_out(holder, names):
    """Remove the results from an object; return {name: its skeleton}."""
    return {name: skeleton(holder.pop(name)) for name in names if name in holder}


def skeleton(value):
    """Return what of a result is a question and no answer: names in an object, how many there are of objects and lists, positions in a
    list of [position, value]; else None."""
    if isinstance(value, dict):
        return {key: skeleton(child) for key, child in value.items()}
    if isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 and is_position(pair[0]) for pair in value):
        return [pair[0] for pair in value]
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [skeleton(child) for child in value]
    return None


def is_position(value):
    """Whether this says where, and not what: whole numbers or a name."""
    return isinstance(value, (int, str)) or isinstance(value, list) and all(isinstance(number, int) for number in value)


def ordered(made, form):
    """Return `made` with its keys in the order of `form`."""
    if isinstance(made, dict) and isinstance(form, dict):
        keys = [key for key in form if key in made] + [key for key in made if key not in form]
        return {key: ordered(made[key], form.get(key)) for key in keys}
    if isinstance(made, list) and isinstance(form, list) and len(made) == len(form):
        return [ordered(*pair) for pair in zip(made, form)]
    return made
