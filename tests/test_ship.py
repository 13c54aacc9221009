"""What is shipped: the layout of an image, and manifests that hold together."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.serving import images_bundle

from tenfold.bundle import Bundle
from tenfold.errors import TenfoldError
from tenfold.ship import kubernetes, training
from tenfold.ship.image import named, write_containerfile
from tenfold.ship.kubernetes import METRICS_PORT, PORT, Shipped, dearest_seconds, node_features, resources
from tenfold.ship.measured import measure
from tenfold.ship.oci import File, digest_of, layer, tree, write_layout
from tenfold.ship.packages import pins
from tenfold.ship.root import slimmed
from tenfold.ship.write import Asked, ship, write_chart, write_plain
from tenfold.ship.yaml import Computed, Value, When, plain, schema, template, values_file

SHIPPED = Shipped(
    name="digits", namespace="team", repository="registry.example.org/team/digits", digest=f"sha256:{'a' * 64}", cpu_class="x86_64+avx2+avx512_vnni",
    threads=1, dearest_seconds=3e-3, peak_bytes=90_000_000, rate=20.0,
)  # fmt: skip


# ---------------------------------------------------------------- images


def test_a_layer_is_the_same_bytes_each_time_and_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "program").write_text("x")
    (tmp_path / "deep" / "program").chmod(0o700)
    (tmp_path / "out").symlink_to("/etc/hostname")
    files = [File(path="b/c", content=b"1"), *tree(tmp_path, "a")]
    one, two = layer(files, "first", epoch=0), layer(reversed(files), "first", epoch=0)
    assert one == two
    with tarfile.open(fileobj=io.BytesIO(one.data)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["a", "a/deep", "a/deep/program", "b", "b/c"], "folders first, and no link that leads out"
        assert {(m.uid, m.gid, m.mtime) for m in members} == {(0, 0, 0)}
        assert [oct(m.mode) for m in members] == ["0o755", "0o755", "0o755", "0o755", "0o644"]


def test_a_layout_is_what_the_specification_says(tmp_path: Path) -> None:
    (tmp_path / "image" / "blobs").mkdir(parents=True)
    (tmp_path / "image" / "blobs" / "old").write_text("of another image")
    one = layer([File(path="a", content=b"1")], "first", epoch=0)
    digest = write_layout(tmp_path / "image", "1", [one], {"User": "1:1"}, {"a": "b"}, architecture="amd64", created="1970-01-01T00:00:00Z")
    index = json.loads((tmp_path / "image" / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["digest"] == digest
    assert json.loads((tmp_path / "image" / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}

    def blob(described: dict[str, Any]) -> bytes:
        data = (tmp_path / "image" / "blobs" / "sha256" / described["digest"].partition(":")[2]).read_bytes()
        assert (digest_of(data), len(data)) == (described["digest"], described["size"])
        return data

    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert blob(manifest["layers"][0]) == one.data
    assert config["rootfs"] == {"type": "layers", "diff_ids": [one.diff_id]}
    assert (config["architecture"], config["config"]) == ("amd64", {"User": "1:1", "Labels": {"a": "b"}})
    assert not (tmp_path / "image" / "blobs" / "old").exists()


def test_a_root_keeps_no_shell_no_rights_and_what_scanners_look_for() -> None:
    whole = io.BytesIO()
    status = b"Package: zlib1g\nVersion: 1:1.2\nStatus: install ok\n\nPackage: base-files\nVersion: 12\n"
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, mode, content in (
            ("./usr/bin/dash", 0o755, b"x"), ("./usr/bin/python3.11", 0o755, b"python"), ("./usr/bin/su", 0o4755, b"x"), ("./usr/lib/program", 0o4755, b"x"),
            ("./usr/share/doc/a/copyright", 0o644, b"x"), ("./var/lib/dpkg/status", 0o644, status), ("./etc/passwd", 0o644, b"root"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.uname, info.mtime = len(content), mode, 1000, "somebody", 77
            tar.addfile(info, io.BytesIO(content))
        device = tarfile.TarInfo("./dev/null")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    with tarfile.open(fileobj=io.BytesIO(slimmed(whole.getvalue(), 5))) as tar:
        members = {m.name: m for m in tar.getmembers()}
        files = [n for n, m in members.items() if m.isreg()]
        assert files == ["etc/passwd", "usr/bin/python3.11", "usr/lib/program", "var/lib/dpkg/status.d/base-files", "var/lib/dpkg/status.d/zlib1g"]
        assert members["usr/lib/program"].mode == 0o755
        assert {(m.uid, m.uname, m.mtime) for m in members.values()} == {(0, "", 5)}
        content = tar.extractfile("var/lib/dpkg/status.d/zlib1g")
        assert content is not None
        assert content.read().startswith(b"Package: zlib1g\n")


@pytest.mark.parametrize(("text", "found"), [
    ("a:1", ("a", "1")), ("registry.example.org:5000/team/model-x:v1.2", ("registry.example.org:5000/team/model-x", "v1.2")),
    ("a", None), ("A:1", None), ("a:1:2", None), ("a/:1", None), ("a:-", None), ("", None),
])  # fmt: skip
def test_names_of_images(text: str, found: tuple[str, str] | None) -> None:
    if found is not None:
        assert named(text) == found
    else:
        with pytest.raises(TenfoldError, match="give NAME:TAG"):
            named(text)


def test_packages_are_those_that_are_here_and_what_they_need() -> None:
    found = pins("onnxruntime")
    assert {"onnxruntime", "numpy", "starlette", "anyio", "uvicorn", "pillow", "orjson"} <= set(found)
    assert not {"torch", "sympy", "onnx", "typer"} & set(found)
    assert found["numpy"] == np.__version__


# ---------------------------------------------------------------- yaml


FLAG = Value("a.flag", False, {"type": "boolean"}, "a flag")
TEXT = Value("a.text", "yes", {"type": "string"}, "a text")
TREE = {
    "name": TEXT, "number": "1e3", "empty": {}, "none": [], "list": [{"a": 1, "b": [TEXT, "no"]}, When(FLAG, {"c": 2}), "x", [1]],
    "maybe": When(FLAG, {"d": 3}), "unless": When(FLAG, 4, otherwise=True), "computed": Computed("here", "{{ .Release.Name }}"),
}  # fmt: skip


def test_plain_yaml_is_what_the_tree_says() -> None:
    assert yaml.safe_load(plain(TREE)) == {
        "name": "yes", "number": "1e3", "empty": {}, "none": [], "list": [{"a": 1, "b": ["yes", "no"]}, "x", [1]], "unless": 4, "computed": "here",
    }  # fmt: skip


@pytest.mark.parametrize("flag", [True, False])
def test_a_template_comes_to_the_same(flag: bool) -> None:
    """Templates are filled in here as Helm would: conditions by lines, values by what they are."""
    out, skipping = [], False
    for line in template(TREE).splitlines():
        if match := re.fullmatch(r"\{\{- if (not )?\.Values\.a\.flag \}\}", line):
            skipping = flag == bool(match[1])
        elif line == "{{- end }}":
            skipping = False
        elif not skipping:
            out.append(line.replace("{{ .Values.a.text | quote }}", '"yes"').replace("{{ .Release.Name }}", "here"))
    found = yaml.safe_load("\n".join(out))
    expected = yaml.safe_load(plain(TREE))
    if flag:
        expected["list"].insert(1, {"c": 2})
        expected["maybe"] = {"d": 3}
        del expected["unless"]
    assert found == expected


def test_values_come_with_what_they_are_about_and_a_schema() -> None:
    assert values_file([FLAG, TEXT]) == 'a:\n  # a flag\n  flag: false\n  # a text\n  text: "yes"\n'
    found = schema([FLAG, TEXT])
    assert found["$schema"].startswith("http://json-schema.org/draft-07")
    assert found["properties"]["a"] == {
        "type": "object", "additionalProperties": False, "required": ["flag", "text"],
        "properties": {"flag": {"type": "boolean", "description": "a flag"}, "text": {"type": "string", "description": "a text"}},
    }  # fmt: skip
    assert found["additionalProperties"] is False


# ---------------------------------------------------------------- manifests


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("plain")
    write_plain(SHIPPED, folder)
    return {(found := yaml.safe_load(path.read_text()))["kind"]: found for path in sorted(folder.glob("*.yaml"))}


def test_what_refers_to_something_finds_it(manifests) -> None:
    deployment, service, policy = manifests["Deployment"], manifests["Service"], manifests["NetworkPolicy"]
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"], policy["spec"]["podSelector"]["matchLabels"], manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    for spread in pod["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert "tenfold.dev/track" in deployment["spec"]["selector"]["matchLabels"], "so that a canary's pods are its own"
    assert "tenfold.dev/track" not in service["spec"]["selector"], "and answer behind the same service"
    (container,) = pod["spec"]["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"http": PORT, "metrics": METRICS_PORT}
    assert {p["targetPort"] for p in service["spec"]["ports"]} <= set(ports)
    assert {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]} <= set(ports)
    assert all(container[f"{kind}Probe"]["httpGet"]["port"] in ports for kind in ("startup", "readiness", "liveness"))
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]} == {"token"}
    assert manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "the autoscaler's"
    assert pod["spec"]["serviceAccountName"] == manifests["ServiceAccount"]["metadata"]["name"]
    assert {m["metadata"].get("namespace", m["metadata"]["name"]) for m in manifests.values()} == {"team"}
    assert container["image"] == f"{SHIPPED.repository}@{SHIPPED.digest}"


def test_pods_are_restricted_and_nothing_gets_out(manifests) -> None:
    spec = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert manifests["NetworkPolicy"]["spec"]["egress"] == []
    assert manifests["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert manifests["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    drain = next(int(a.partition("=")[2]) for a in container["args"] if a.startswith("--drain="))
    timeout = next(int(a.partition("=")[2]) for a in container["args"] if a.startswith("--timeout="))
    assert drain + timeout < spec["terminationGracePeriodSeconds"]
    assert spec["nodeSelector"]["feature.node.kubernetes.io/cpu-cpuid.AVX512VNNI"] == "true"


def test_resources_are_of_what_was_measured_and_of_the_dearest() -> None:
    requests, limits = resources(SHIPPED)
    assert requests == {"cpu": "100m", "memory": "112Mi"}
    assert limits == {"cpu": "2", "memory": "112Mi"}
    dearer = resources(Shipped(**{**vars(SHIPPED), "dearest_seconds": 20e-3}))[0]
    assert dearer["cpu"] == "408m"
    points = [{"batch": 64, "threads": 2, "cpu_mean": 5.0}, {"batch": 1, "threads": 2, "cpu_mean": 100.0}]
    assert dearest_seconds({"points": points, "worst_case_ratio_to_mean": 5.0}) == pytest.approx(5e-4)
    assert node_features("aarch64+asimd+bf16") == {
        "kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux", "feature.node.kubernetes.io/cpu-cpuid.ASIMD": "true",
    }  # fmt: skip


def test_a_chart_has_all_values_that_its_templates_name(tmp_path: Path) -> None:
    write_chart(SHIPPED, "digits", tmp_path)
    values = yaml.safe_load((tmp_path / "values.yaml").read_text())
    templates = "".join(p.read_text() for p in (tmp_path / "templates").iterdir())
    for path in set(re.findall(r"\.Values\.([A-Za-z.]+)", templates)):
        place = values
        for name in path.split("."):
            assert name in place, path
            place = place[name]
    assert "Namespace\n" not in templates
    assert ".Release.Namespace" in templates
    assert yaml.safe_load((tmp_path / "Chart.yaml").read_text())["kubeVersion"] == ">=1.29.0-0"


def test_updates_by_the_clock_hold_together() -> None:
    wanted = training.Training(name="digits", namespace="team", image="t:1", claim="c", schedule="0 3 * * *", workers=2, cpu=2, memory="8Gi")
    found = {name: yaml.safe_load(plain(tree)) for name, tree in training.objects(wanted).items()}
    job = found["40-cronjob.yaml"]["spec"]["jobTemplate"]["spec"]["template"]
    assert job["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["priorityClassName"] == found["00-priorityclass.yaml"]["metadata"]["name"]
    scheduler = found["30-dask-scheduler.yaml"]
    assert found["31-dask-service.yaml"]["spec"]["selector"].items() <= scheduler["spec"]["template"]["metadata"]["labels"].items()
    workers = found["32-dask-workers.yaml"]["spec"]["template"]["spec"]["containers"][0]
    assert "tcp://digits-dask-scheduler.team.svc:8786" in workers["command"]
    assert "--memory-limit=8GiB" in workers["command"]
    mine = found["20-networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"]
    assert all(mine.items() <= labels.items() for labels in (job["metadata"]["labels"], scheduler["spec"]["template"]["metadata"]["labels"]))


# ---------------------------------------------------------------- bundles


def test_what_a_server_takes_is_measured(tmp_path: Path) -> None:
    taken = measure(Bundle.load(images_bundle(tmp_path / "bundle")))
    assert 20e6 < taken.idle_bytes <= taken.peak_bytes < 500e6


def test_a_containerfile_has_all_that_it_copies(tmp_path: Path) -> None:
    bundle = Bundle.load(images_bundle(tmp_path / "bundle"))
    write_containerfile(bundle, "a", "1", tmp_path / "out")
    text = (tmp_path / "out" / "Containerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert (tmp_path / "out" / source).exists()
    assert {p.name for p in (tmp_path / "out" / "bundle").iterdir()} == {p.name for p in bundle.path.iterdir()}
    assert not [p for p in (tmp_path / "out" / "tenfold").rglob("*.py") if "import torch" in p.read_text(errors="ignore")]
    assert all("==" in line for line in (tmp_path / "out" / "requirements.txt").read_text().splitlines())


def test_without_mmdebstrap_the_rest_is_written_and_it_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tenfold.ship.root.shutil.which", lambda _: None)
    said = list[str]()
    document = ship(images_bundle(tmp_path / "bundle"), Asked(image="a:1", out=tmp_path / "out"), say=said.append)
    assert document["image"] is None
    assert "apt install mmdebstrap" in " ".join(said)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"chart", "containerfile", "kubernetes", "ship.json"}
    with pytest.raises(TenfoldError, match="no image to push"):
        ship(tmp_path / "bundle", Asked(image="a:1", out=tmp_path / "out", push=True), say=said.append)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(TenfoldError, match="choose another --out"):
        ship(tmp_path / "bundle", Asked(image="a:1", out=tmp_path / "mine"), say=said.append)
    with pytest.raises(TenfoldError, match="give --name"):
        ship(tmp_path / "bundle", Asked(image="a:1", out=tmp_path / "out", name="9"), say=said.append)


def test_kubernetes_names_only_objects_that_it_knows() -> None:
    assert list(kubernetes.objects(SHIPPED, in_chart=True)) == [n for n in kubernetes.objects(SHIPPED, in_chart=False) if n != "00-namespace.yaml"]
