"""As much of `kubectl kustomize` as deploy/ uses: resources, components, and JSON patches of objects of a kind. Under --slow, what
it makes is compared with kubectl's."""
import copy
import os

import yaml


def build(folder):
    """Return the objects that a folder's kustomization.yaml stands for, in the order of its resources."""
    with open(os.path.join(folder, "kustomization.yaml")) as stream:
        content = yaml.safe_load(stream)
    _require(content, {"apiVersion", "kind", "resources", "components", "patches"})
    objects = [made for name in content.get("resources", ()) for made in _resource(os.path.join(folder, name))]
    for name in content.get("components", ()):
        with open(os.path.join(folder, name, "kustomization.yaml")) as stream:
            component = yaml.safe_load(stream)
        _require(component, {"apiVersion", "kind", "patches"})
        _patch(objects, component)
    _patch(objects, content)
    return objects


def _require(content, known):
    assert set(content) <= known, "a kustomization with %s, which this reader does not know" % sorted(set(content) - known)


def _resource(path):
    if os.path.isdir(path):
        return build(path)
    with open(path) as stream:
        return list(yaml.safe_load_all(stream))


def _patch(objects, content):
    for patch in content.get("patches", ()):
        targets = [made for made in objects if made["kind"] == patch["target"]["kind"]]
        assert targets, "no %s to patch" % patch["target"]["kind"]
        for made in targets:
            for operation in yaml.safe_load(patch["patch"]):
                _apply(made, operation)


def _apply(made, operation):
    """Change an object by an operation of RFC 6902: add, replace, move or copy."""
    place, key = _find(made, operation["path"])
    value = operation.get("value")
    if operation["op"] in ("move", "copy"):
        there, name = _find(made, operation["from"])
        value = copy.deepcopy(there[name])
        if operation["op"] == "move":
            del there[name]
    if operation["op"] == "replace":
        place[key]  # which has to be there
    if isinstance(place, list) and operation["op"] != "replace":
        place.insert(len(place) if key == "-" else key, value)
    else:
        place[key] = value


def _find(made, path):
    """Return the mapping or list that holds what a JSON pointer names, and its key there."""
    *above, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    for part in above:
        made = made[int(part) if isinstance(made, list) else part]
    return made, int(last) if isinstance(made, list) and last != "-" else last
