"""Ray is imported when it is needed and not before: by then `ray_cluster` has put its settings into the environment."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = [f"scaling.{name}" for name in ("__main__", "commands.data", "commands.model", "commands.study")]
DATA = [f"scaling.data.shards.{name}" for name in ("convert", "verify", "manifest", "shard", "read", "pipeline")]
STUDIES = ["scaling.sweep.run", "scaling.sweep.sweep", "scaling.sweep.cluster"]


def imports(module):
    """The modules that a module imports as soon as it is imported."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists():  # a name in a module
        return set()
    found, left = set(), list(ast.parse(path.read_text()).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.With | ast.Try) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test)
        ):
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    parents = {name.rsplit(".", at)[0] for name in found for at in range(1, name.count(".") + 1)}
    return found | parents


@pytest.mark.parametrize("module", [*COMMANDS, *DATA, *STUDIES, "scaling.data", "scaling.folder"])
def test_importing_this_does_not_import_ray(module):
    seen, left = {module: None}, [module]
    while left:
        importer = left.pop()
        for name in imports(importer) - seen.keys():
            assert name != "ray", f"{name} is imported by {importer}"
            seen[name] = importer
            if name.startswith("scaling"):
                left.append(name)


def test_the_public_names_of_data_are_loaded_when_asked_for():
    program = (
        "import sys, scaling.data, scaling.data.shards.convert, scaling.data.shards.verify, scaling.__main__\n"
        "assert 'ray' not in sys.modules\n"
        "assert {'SpectraDatasource', 'ShardDatasink'} <= set(dir(scaling.data))\n"
        "from scaling.data import ShardDatasink, SpectraDatasource\n"
        "assert 'ray' in sys.modules\n"
        "assert SpectraDatasource.__module__ == 'scaling.data.shards.datasource'\n"
        "assert not hasattr(scaling.data, 'Other')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
