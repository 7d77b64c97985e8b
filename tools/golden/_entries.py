"""From the form of a golden file to its numbers: what is a result is taken out, and made anew."""
import copy
from collections import namedtuple

from common import cli

# What is made together. path: to the objects that hold it ("" is the file, "variants.*" each network), names: of the results in such an
# object, make: f(upstream, settings, form) -> {name: value}, where `settings` is the object without any result and `form` is
# {name: what `skeleton` leaves of the result that stands there now}.
Entry = namedtuple("Entry", "path names make")


def chosen(entries, only):
    """Return the Entries whose name begins with one of `only` (None: all). Raises UserError for a name of none."""
    found = [entry for entry in entries if only is None or any(is_named(entry, word) for word in only)]
    for word in only or ():
        if not any(is_named(entry, word) for entry in entries):
            raise cli.UserError("--only %s: the entries are %s" % (word, ", ".join(sorted(set(full_names(entries))))))
    return found


def full_names(entries):
    """Return the names of all results: `variants.*.train_losses`."""
    return [".".join(part for part in (entry.path, name) if part) for entry in entries for name in entry.names]


def is_named(entry, word):
    """Whether a result of an Entry is, or is below, `word`."""
    return any((name + ".").startswith(word + ".") for name in full_names([entry]))


def make(form, entries, upstream, variants=None):
    """Return the golden file of `form`, an earlier one, with the results of `entries` alone, all of them computed.

    variants: of which networks (their `arch`); None for all. What is no result (inputs, settings, notes) stays; objects of other
    networks are left out.
    """
    made = copy.deepcopy(form)
    if variants is not None:
        made["variants"] = [variant for variant in made.get("variants", []) if variant["arch"] in variants]
        if len(made["variants"]) < len(variants):
            raise cli.UserError("--variants: the networks are %s" % ", ".join(variant["arch"] for variant in form["variants"]))
    todo = [(entry, holder, taken_out(holder, entry.names)) for entry in entries for holder in holders(made, entry.path)]
    for entry, holder, old in todo:
        results = entry.make(upstream, holder, old)
        missing = set(old) ^ set(results)
        assert not missing, "%s: %s" % (entry.path, missing)
        holder.update(results)
    return ordered(made, form)


def holders(node, path):
    """Yield the objects at a path."""
    head, _, rest = path.partition(".")
    if head == "":
        yield node
        return
    for child in (node if head == "*" else [node[head]] if head in node else []):
        yield from holders(child, rest)


def taken_out(holder, names):
    """Remove the results from an object; return {name: its skeleton}."""
    return {name: skeleton(holder.pop(name)) for name in names if name in holder}


def skeleton(value):
    """Return what of a result is a question and no answer: names in an object, positions in a list of [position, value]; else None."""
    if isinstance(value, dict):
        return {key: skeleton(child) for key, child in value.items()}
    if isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 and is_position(pair[0]) for pair in value):
        return [pair[0] for pair in value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
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
