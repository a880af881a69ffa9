"""The image by its text: what goes in, as whom it runs, and where that user may write. No image is built here."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml
from launching import CHECKOUT
from setuptools import find_packages

LAUNCH = CHECKOUT / "scripts" / "launch"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order: the word and the rest."""
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined if line)]


def environment() -> dict[str, str]:
    given = dict(pair.split("=", 1) for word, rest in instructions() if word == "ENV" for pair in shlex.split(rest))
    return {name: value.replace("$PATH", "/usr/bin:/bin") for name, value in given.items()}


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return loaded


def ignored(path: str) -> bool:
    """Return whether .dockerignore excludes a file: the last pattern decides that fits it or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    out = False
    for line in (CHECKOUT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, folder) for folder in above):
                out = not line.startswith("!")
    return out


def test_the_program_goes_in() -> None:
    names = ["LICENSE", "README.md", "constraints.txt", "pyproject.toml"]
    for package in ("model", "pipeline", "shards", "scripts"):
        files = [file for suffix in ("py", "sh", "yaml") for file in (CHECKOUT / package).rglob(f"*.{suffix}")]
        names += [str(file.relative_to(CHECKOUT)) for file in files]
    assert {"pipeline/train/loop.py", "shards/text.py", "pipeline/recipes/finetune/small.yaml"} < set(names)
    assert [name for name in names if ignored(name)] == []
    folders = {str(Path(package.replace(".", "/"))) for package in setuptools_packages()}
    assert folders <= {str(Path(name).parent) for name in names}


def setuptools_packages() -> list[str]:
    find = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert find.pop("namespaces") is False
    return find_packages(str(CHECKOUT), **find)


def test_nothing_else_goes_in() -> None:
    for name in (
        *(".git/config", ".venv/bin/python", ".env", ".netrc", ".deepspeed_env", ".gitignore", ".ci/run", ".coverage"),
        *("runs/a/checkpoints/step-00000001/part-00000.safetensors", "runs/a/config.yaml", "demo/images/x.jpg"),
        *(
            "shards/train/shard-000000.tar",
            "shards/train/manifest.parquet",
            "shards/train/dataset.json",
            "shards/x.tar",
        ),
        *(
            "shards/train/x.py",
            "shards/x.tar",
            "shards/images/a/b/c.jpg",
            "shards/dataset.json",
            "model/model.safetensors",
        ),
        *(
            "model/out/config.json",
            "pipeline/.env",
            "pipeline/data/key.pem",
            "scripts/id.key",
            "scripts/.aws/credentials",
        ),
        *("pipeline/__pycache__/build.cpython-311.pyc", "maskfeat_pipeline.egg-info/PKG-INFO", "scripts/x.parquet"),
        *(
            "tests/conftest.py",
            "docs/how-to/launching.md",
            "credentials.json",
            "my data/x.jpg",
            "hosts",
            "server.pem",
            "wandb/x",
        ),
    ):
        assert ignored(name), name


def test_builders_find_no_other_list() -> None:
    """BuildKit would prefer one beside the Dockerfile, and others would not see that."""
    assert not list(LAUNCH.glob("*ignore"))


def test_versions_are_pinned_and_nothing_for_development_is_installed() -> None:
    [(first, base), *rest] = instructions()
    assert first == "FROM" and re.fullmatch(r"python:3\.11\.[0-9]+-slim-bookworm", base)
    assert "FROM" not in dict(rest)
    [extras] = [rest.removeprefix("EXTRAS=") for word, rest in instructions() if word == "ARG"]
    assert set(extras.split(",")) <= set(project()["optional-dependencies"]) - {"dev", "demo"}
    assert "cuda13" in extras.split(",")
    [install] = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert install.endswith('.venv/bin/pip install --no-cache-dir --constraint constraints.txt --editable ".[$EXTRAS]"')
    said = " ".join(rest for _, rest in instructions())
    assert not re.search("dev|setup.sh|sudo|curl|wget|latest|://", said.replace("/dev/", ""))
    assert not re.search("token|secret|passw|credential|api_?key", said, re.IGNORECASE)


def test_it_runs_as_a_user_with_a_home_for_its_caches() -> None:
    words = [word for word, _ in instructions()]
    assert words[-1] == "USER" and words.count("USER") == 1
    assert instructions()[-1] == ("USER", "1000:1000")  # numbers, as runAsNonRoot wants it
    [home] = [rest for word, rest in instructions() if word == "RUN" and "useradd" in rest]
    assert home == "useradd --uid 1000 --create-home maskfeat && chmod 1777 /home/maskfeat"
    given = environment()
    assert given["HOME"] == "/home/maskfeat" and given["USER"] == "maskfeat"
    caches = ("XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    assert all(given[name].startswith("/home/maskfeat/.cache") for name in caches)
    assert given["PATH"].split(":")[0] == f"{dict(instructions())['WORKDIR']}/.venv/bin"


def test_image_and_manifest_agree() -> None:
    manifest = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    tag = f"maskfeat:{project()['version']}"
    assert container["image"] == f"registry.example/{tag}"
    for file in ("Dockerfile", "kubernetes.yaml"):
        tags = re.findall(r"maskfeat:[\w.]+", (LAUNCH / file).read_text())
        assert set(tags) == {tag} and len(tags) >= 2
    user, group = map(int, dict(instructions())["USER"].split(":"))
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts == {"/data": True, "/runs": False, "/dev/shm": False, environment()["HOME"]: False, "/tmp": False}
