"""The manifest against the published OpenAPI models of JobSet and Kubernetes: no field unknown, missing or mistyped."""

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import CHECKOUT

from pipeline.config import load_recipe
from pipeline.supervisor.hostfile import read_hostfile

models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs the package kubeflow-trainer-api")


@pytest.fixture
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / "scripts" / "launch" / "kubernetes.yaml").read_text())
    return loaded


def problems(manifest: dict[str, Any]) -> list[str]:
    """Return the errors of the models, and every unknown field, which is lost in a round trip."""
    try:
        known = models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    except ValueError as error:
        return str(error).splitlines()
    return sorted(set(paths(manifest)) - set(paths(known)))


def paths(value: Any, at: str = "") -> list[str]:
    if isinstance(value, dict):
        return [path for key, inner in value.items() for path in paths(inner, f"{at}.{key}")]
    if isinstance(value, list):
        return [path for index, inner in enumerate(value) for path in paths(inner, f"{at}[{index}]")]
    return [f"{at}={value}"]


def test_the_manifest_fits_the_models(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"


@pytest.mark.parametrize("case", ["unknown", "missing", "mistyped"])
def test_the_models_find_mistakes(manifest: dict[str, Any], case: str) -> None:
    wrong = copy.deepcopy(manifest)
    job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
    if case == "unknown":
        job["template"]["spec"]["terminationGraceSeconds"] = 90
    elif case == "missing":
        del job["podFailurePolicy"]["rules"][0]["onExitCodes"]["operator"]
    else:
        job["completions"] = "4"
    assert problems(wrong)


def test_values_are_among_those_that_the_models_name(manifest: dict[str, Any]) -> None:
    [rule] = manifest["spec"]["failurePolicy"]["rules"]
    assert f"{rule['action']}," in models.JobsetV1alpha2FailurePolicyRule.model_fields["action"].description
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    for rule in job["podFailurePolicy"]["rules"]:
        assert f"- {rule['action']}:" in models.IoK8sApiBatchV1PodFailurePolicyRule.model_fields["action"].description


def test_its_numbers_and_names_agree(manifest: dict[str, Any]) -> None:
    """Nodes, GPUs and host names are each said in several places; the recipe must take so many ranks."""
    [group] = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    nodes = int(container["env"][0]["value"])
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert int(container["resources"]["limits"]["cpu"]) == 8 * gpus
    assert container["resources"]["limits"]["memory"] == f"{32 * gpus}Gi"
    [script] = container["args"]
    name = f"{manifest['metadata']['name']}-{group['name']}-0-"
    assert job["completions"] == job["parallelism"] == nodes
    assert f'"{name}$index.{manifest["spec"]["network"]["subdomain"]} slots={gpus}"' in script
    assert f"--master_addr {name}0.{manifest['spec']['network']['subdomain']} " in script
    recipe, *settings = script[script.index("scripts/pretrain.py") :].replace("\\", "").split()[1:]
    assert load_recipe(recipe, settings).micro_batch(nodes * gpus)


def test_a_pod_may_do_no_more_than_it_needs(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes["memory"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert volumes["data"]["persistentVolumeClaim"]["readOnly"] is True
    assert all("hostPath" not in volume for volume in volumes.values())
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 90)


def test_its_script_writes_the_host_file_that_deepspeed_reads(manifest: dict[str, Any], tmp_path: Path) -> None:
    """With another `python`, and another /tmp."""
    group = manifest["spec"]["replicatedJobs"][0]
    [container] = group["template"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    [script] = container["args"]
    variables = {"NODES": "4", "JOB_COMPLETION_INDEX": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [*container["command"], script.replace("/tmp/hosts", str(tmp_path / "hosts"))]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, check=True)
    assert read_hostfile(tmp_path / "hosts") == {f"maskfeat-node-0-{index}.maskfeat": 8 for index in range(4)}
    said = done.stdout.split("\n")
    assert said[said.index("--node_rank") + 1] == "2" and said[said.index("--hostfile") + 1] == str(tmp_path / "hosts")
    del variables["JOB_COMPLETION_INDEX"]
    assert subprocess.run(command, capture_output=True, env=variables, timeout=60).returncode
