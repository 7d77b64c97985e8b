"""Writes names-<version>.json from the wheels."""

import json

from torch_npu_api import names, wheels

for version in wheels.VERSIONS:
    modules = names.of_wheel(wheels.fetch(version))
    lines = ["%s: %s" % (json.dumps(module), json.dumps(modules[module])) for module in modules]
    with open(names.json_path(version), "w") as handle:
        handle.write("{\n" + ",\n".join(lines) + "\n}\n")
    print("wrote", names.json_path(version))
