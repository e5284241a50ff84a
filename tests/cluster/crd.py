"""Makes `rayjob.json`, by which `cluster/kuberay.yaml` is checked without a cluster, from the CRD that KubeRay publishes:

    git clone --branch v1.7.0 https://github.com/ray-project/kuberay
    python -m tests.cluster.crd v1.7.0 kuberay/ray-operator/config/crd/bases/ray.io_rayjobs.yaml

Of every object that our file has, it keeps the names and types of all fields, and refuses others; it descends only into fields
that our file uses, because the whole is 1.4 MB. A field that the file uses for the first time is checked by its type alone, until
this is run again. Defaults, descriptions and rules in CEL are left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from cluster.environment import ROOT

SCHEMA = Path(__file__).with_name("rayjob.json")
JOB = ROOT / "cluster" / "kuberay.yaml"
KEPT = ("type", "required", "enum", "pattern", "minimum", "minLength", "maxLength", "minItems", "anyOf")
ORIGIN = (
    "Reduced by tests/cluster/crd.py from ray-operator/config/crd/bases/ray.io_rayjobs.yaml of "
    "https://github.com/ray-project/kuberay, {}; Apache License 2.0"
)


def reduced(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """The schema of what is in `used`: all values at this place of the file."""
    found: dict[str, Any] = {name: schema[name] for name in KEPT if name in schema}
    if not used:
        found.pop("required", None)
    if used and "properties" in schema:
        found |= {"additionalProperties": False}
        found["properties"] = {
            name: reduced(field, [each[name] for each in used if name in each])
            for name, field in schema["properties"].items()
        }
    elif used and "additionalProperties" in schema:
        found["additionalProperties"] = reduced(schema["additionalProperties"], [])
    elif used and "items" in schema:
        found["items"] = reduced(schema["items"], [item for each in used for item in each])
    return found


def main(version: str, published: str) -> None:
    """Write the reduced schema of the stored version."""
    (schema,) = (
        each["schema"]["openAPIV3Schema"]
        for each in yaml.safe_load(Path(published).read_text())["spec"]["versions"]
        if each["name"] == "v1"
    )
    content = {"$comment": ORIGIN.format(version)} | reduced(schema, [yaml.safe_load(JOB.read_text())])
    SCHEMA.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
