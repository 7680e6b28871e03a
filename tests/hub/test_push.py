"""A pruned model to the Hub and back, by all roads; what stops a push, and what is left then."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace

import pytest

from hf_mpruner.plan import PLAN_NAME
from push_kit import write_folder

HAND = b"---\nlicense: mit\ntags:\n- mine\n---\n# By hand\n\nWords of a person.\n"


def push(folder, repo_id, **options):
    """`push_pruned_model` of a folder; what `Pushed` says."""
    import dataclasses

    from huggingface_hub.utils import close_session

    from hf_mpruner import push_pruned_model

    close_session()
    return dataclasses.asdict(push_pruned_model(folder, repo_id, **options))


def push_live(folder, repo_id, **options):
    """The folder's model, in memory."""
    import dataclasses

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_mpruner import PruningReport, push_pruned_model

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    report = PruningReport.load(folder) if options.pop("report", True) else None
    pushed = push_pruned_model(model, repo_id, report=report, processing_class=words, **options)
    return dataclasses.asdict(pushed)


def command(folder, repo_id, flags):
    """`hf-mpruner push` in this process: exit code, stdout, stderr."""
    import contextlib
    import io

    from hf_mpruner.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["push", folder, repo_id, *flags])
    return code, out.getvalue(), err.getvalue()


def logits(place, revision=None):
    """What a user of the model gets, as bytes in hex."""
    import tempfile

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with tempfile.TemporaryDirectory() as cache:
        where = {"cache_dir": cache, "revision": revision or "main"}
        model = AutoModelForSequenceClassification.from_pretrained(place, **where).eval()
        inputs = AutoTokenizer.from_pretrained(place, **where)("a b a", return_tensors="pt")
    with torch.no_grad():
        return [model.config.num_hidden_layers, model(**inputs).logits.numpy().tobytes().hex()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("made") / "small", source="somebody/bert")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "small")


@pytest.fixture
def name(request):
    return f"ann/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}"


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
@pytest.mark.parametrize("road", ["model", "folder", "command"])
def test_there_and_back_bit_for_bit(hub, client, xet_client, folder, name, road, uploads):
    hub.uploads = uploads
    sender = {"lfs": client, "regular": xet_client}[uploads]
    if road == "command":
        code, out, err = sender.call(
            command, folder=str(folder), repo_id=name, flags=["--private", "--format", "json"]
        )
        assert (code, json.loads(out)["repo_id"]) == (0, name), err
    else:
        pushed = sender.call(
            {"model": push_live, "folder": push}[road], folder=str(folder), repo_id=name, private=True
        )
        assert (pushed["card"], pushed["repo_id"]) == ("written", name)
    repo = hub.store.repo(name)
    assert (repo.private, len(repo.history())) == (True, 2)
    sent = {path for path in repo.files() if path != ".gitattributes"}
    assert sent == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sender.call(logits, place=name) == sender.call(logits, place=str(folder))
    assert not list(client.home.glob("hf/hf_mpruner/*"))
    assert not list(client.home.glob("hf/hub/.hf_mpruner*"))


@pytest.fixture(scope="module")
def narrowed(made, tmp_path_factory):
    """The layers are all there, of each layer's neurons a quarter is not; made from the model that `made` was cut from."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_mpruner import prune_width_
    from hf_mpruner.artifacts import write_narrowed

    model = AutoModelForSequenceClassification.from_pretrained(made)
    report = prune_width_(model, 0.25, criterion="l1")
    report = replace(report, plan=replace(report.plan, source_model="somebody/bert"))
    folder = tmp_path_factory.mktemp("narrowed") / "narrow"
    return write_narrowed(folder, model=model, processing_class=AutoTokenizer.from_pretrained(made), report=report)


def test_a_narrowed_model_goes_there_and_comes_back(hub, client, folder, narrowed, tmp_path, name):
    client.call(push, folder=str(folder), repo_id=name)  # of the same original, with layers cut: it is replaced
    pushed = client.call(push, folder=str(narrowed), repo_id=name)
    assert (pushed["card"], len(hub.store.repo(name).history())) == ("written", 3)
    files = hub.store.repo(name).files()
    assert set(files) - {".gitattributes"} == {path.name for path in narrowed.iterdir()}
    assert hub.store.repo(name).history()[0].title.endswith("neurons, narrowed with hf_mpruner")
    card = files["README.md"].decode()
    assert f'from_pretrained("{name}")' in card
    assert f"hf-mpruner narrow somebody/bert --plan {name} --output_dir out" in card
    assert "- width-pruning" in card
    assert "CKA of each pair" not in card
    assert client.call(logits, place=name) == client.call(logits, place=str(narrowed))
    assert client.call(push, folder=str(narrowed), repo_id=name)["commit"] is None
    client.call(push, folder=str(folder), repo_id=name)  # and the other way round
    assert not {"width_plan.json", "narrowing_report.json"} & set(hub.store.repo(name).files())
    other = shutil.copytree(narrowed, tmp_path / "other")
    values = json.loads((other / "width_plan.json").read_text())
    (other / "width_plan.json").write_text(json.dumps({**values, "source_model": "another/bert"}))
    failure = client.fails(push, folder=str(other), repo_id=name)
    assert "holds a pruned 'somebody/bert', and this one was made from 'another/bert'" in failure.message


def test_a_narrowed_folder_whose_parts_do_not_fit_is_not_pushed(hub, client, folder, narrowed, tmp_path, name):
    broken = shutil.copytree(narrowed, tmp_path / "broken")
    values = json.loads((broken / "width_plan.json").read_text())
    path, unit = next(iter(values["units"].items()))
    fewer = {**values, "units": {**values["units"], path: {**unit, "kept": unit["kept"][:-1]}}}
    (broken / "width_plan.json").write_text(json.dumps(fewer))
    assert "keep other neurons or heads" in client.fails(push, folder=str(broken), repo_id=name).message
    (broken / "narrowing_report.json").unlink()
    kept = len(unit["kept"])
    failure = client.fails(push, folder=str(broken), repo_id=name)
    assert failure.type == "PlanMismatchError"
    assert f"leaves {kept - 1} of {unit['size']} neurons that '{path}' reads, the model has {kept}" in failure.message
    shutil.copy(folder / PLAN_NAME, broken)
    assert "a card tells of one" in client.fails(push, folder=str(broken), repo_id=name).message
    assert ("model", name) not in hub.store.repos


# -- twelve things that go wrong ---------------------------------------------------------------------------------------

RACED = HAND.replace(b"Words", b"Newer words")


class Case:
    """One fault: what is ordered, whether the push gets through, what is waited, and what is said."""

    def __init__(self, *faults, waits=(), error="", card="written", log=""):
        self.faults, self.waits, self.error, self.card, self.log = faults, list(waits), error, card, log


def fault(method, path, **rule):
    return method, path, rule


CASES = {
    "429": Case(fault("POST", "/commit/", status=429, headers={"Retry-After": "7"}), waits=[7]),
    "429 for an hour": Case(
        fault("POST", "/commit/", status=429, headers={"Retry-After": "3600"}),
        error=r"too many requests of this account \(429: an error on order\)\. Try again in 3600 seconds",
    ),
    "500": Case(fault("POST", "/commit/", status=500, times=2), waits=[1, 2]),
    "503": Case(fault("GET", "/api/models/", status=503), waits=[1]),
    "503 for good": Case(
        fault("POST", "/commit/", status=503, times=99),
        waits=[1, 2, 4, 8, 16],
        error=r"the Hub answers 503: an error on order, at the last of 6 tries too\. Try again later; https://status",
    ),
    # what the client tries by itself, 6 times, and then all of it once more
    "cut during LFS": Case(fault("PUT", "/lfs/.*WEIGHTS", cut="before", times=6), waits=[1, 2, 4, 8, 8, 1]),
    "refused LFS": Case(
        fault("PUT", "/lfs/.*WEIGHTS", status=400, message="BadDigest: x"), error=r"a file changed while it was sent \(400: BadD"
    ),
    "lost acknowledgement": Case(fault("POST", "/commit/", cut="after"), waits=[1]),
    "half an acknowledgement": Case(fault("POST", "/commit/", cut="within", reset=True), waits=[1]),
    "race": Case(fault("POST", "/commit/", before="race"), waits=[1]),
    "401": Case(fault("GET", "/whoami", status=401), error=r"does not know the token \(401.*hf auth login.*HF_TOKEN"),
    "403": Case(
        fault("POST", "/commit/", status=403), error=r"the token may not do that in 'ann/.*\(403: an error.*--create_pr"
    ),
    "slow body": Case(fault("POST", "/commit/", drip=0.2)),
    "a page for an answer": Case(fault("POST", "/validate-yaml", html=True, status=502), waits=[1]),
    "a portal for a commit": Case(fault("POST", "/commit/", html=True), waits=[1]),
    "bad YAML": Case(
        fault("POST", "/validate-yaml", status=400), card="refused", log=r"README\.md of 'ann/.*was not written.*the rest"
    ),
    "card probe 5xx": Case(
        fault("GET", "/resolve/.*/README.md", status=500, times=99), waits=[1, 2, 4, 8, 16], card="unknown",
        log=r"README\.md of 'ann/.*was not written \(the Hub answers 500",
    ),
    "no network": Case(
        fault("*", "/", cut="before", times=999), waits=[1, 2, 4, 8, 16], error=r"cannot be reached.*Check the network"
    ),
}  # fmt: skip


WITH_XET = ("429", "lost acknowledgement", "race")  # with it on, `upload_folder` would make several commits of a push


@pytest.mark.parametrize("what", WITH_XET)
def test_one_commit_whatever_xet_does(hub, xet_client, folder, name, what):
    hub.uploads = "regular"
    repo = hub.add_repo(name, {"README.md": HAND})
    for method, path, rule in CASES[what].faults:
        before = {"before": lambda: repo.write({"README.md": RACED})} if what == "race" else {}
        hub.faults.add(method, path, **{**rule, **before})
    pushed = xet_client.call(push, folder=str(folder), repo_id=name)
    assert (xet_client.waits, pushed["commit"]) == (CASES[what].waits, repo.at("main").oid)
    assert len(repo.history()) == 3 + (what == "race")
    assert (b"Newer words" if what == "race" else b"Words of a person") in repo.files()["README.md"]


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", CASES)
def test_nothing_lost_and_nothing_doubled(hub, client, folder, name, what):
    case, before = CASES[what], listing(folder)
    repo = hub.add_repo(name, {"README.md": HAND, "notes.txt": b"of a person"})
    for method, path, rule in case.faults:
        if rule.get("before") == "race":
            rule = {"before": lambda: repo.write({"README.md": RACED})}
        weights = hashlib.sha256(before["model.safetensors"]).hexdigest()
        hub.faults.add(method, path.replace("WEIGHTS", weights), **rule)
    mark, log = hub.journal.mark(), len(client.log)
    options = {"folder": str(folder), "repo_id": name, "check": False}
    others = 2 + (what == "race")
    if case.error:
        failure = client.fails(push, **options)
        assert failure.type == "PushError"
        assert re.search(case.error, failure.message), failure.message
        assert (client.waits, len(repo.history())) == (case.waits, others)
        assert repo.files()["README.md"] == HAND
        again = re.search(rf"The complete folder is '{folder}'. To finish: hf-mpruner push (.*)$", failure.message)[1]
    else:
        pushed = client.call(push, **options)
        assert (client.waits, pushed["card"]) == (case.waits, case.card)
        assert (pushed["commit"], len(repo.history())) == (repo.at("main").oid, others + 1)
        again = f"{folder} {name} --no_check"
    if case.log:
        assert re.search(case.log, client.log[log:])
        assert f"To finish: hf-mpruner push {again}" in client.log[log:]
        assert repo.files()["README.md"] == HAND
    hub.faults.clear()
    assert again == f"{folder} {name} --no_check"
    code, _, err = client.call(command, folder=str(folder), repo_id=name, flags=["--no_check"])
    assert (code, len(repo.history())) == (0, others + 1 + (case.card != "written")), err
    card, files = repo.files().pop("README.md"), repo.files()
    assert card.startswith((RACED if what == "race" else HAND).partition(b"tags")[0])
    assert (b"Newer words" if what == "race" else b"Words of a person") in card
    assert f'from_pretrained("{name}")'.encode() in card
    assert files.pop("notes.txt") == b"of a person"
    assert {path: files.get(path) for path in before if path != "README.md"} == {
        path: data for path, data in before.items() if path != "README.md"
    }
    assert listing(folder) == before
    assert not hub.journal.containing(hub.token, since=mark)
    assert not hub.journal.containing(str(folder), since=mark)


def push_live_on_a_full_disk(folder, repo_id):
    """As `push_live`, with room for files of 2000 bytes."""
    import resource
    import signal

    from transformers import AutoModelForSequenceClassification

    from hf_mpruner import PruningReport, push_pruned_model

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    report = PruningReport.load(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        push_pruned_model(model, repo_id, report=report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(hub, client, folder, name):
    failure = client.fails(push_live_on_a_full_disk, folder=str(folder), repo_id=name)
    assert failure.type == "PushError"
    assert re.search(
        r"The model cannot be written to '.*/hf_mpruner/ann--.*' before it is pushed: .*bytes are free there\. Make room "
        r"there, or pass output_dir on another disk\..*nothing was sent",
        failure.message,
    )
    assert name not in {id for _, id in hub.store.repos}
    assert not list(client.home.glob("hf/hf_mpruner/*"))


def test_a_model_in_memory_leaves_its_folder_if_the_push_fails(hub, client, folder, name):
    hub.faults.add("POST", "/commit/", status=403)
    failure = client.fails(push_live, folder=str(folder), repo_id=name, private=True)
    left, command_line = re.search(
        r"The complete folder is '(.*)'\. To finish: hf-mpruner push (.*)$", failure.message
    ).groups()
    assert command_line == f"{left} {name} --private"
    code, _, err = client.call(command, folder=left, repo_id=name, flags=["--private"])
    assert code == 0, err
    repo = hub.store.repo(name)
    assert (repo.private, len(repo.history())) == (True, 2)
    assert client.call(logits, place=name) == client.call(logits, place=str(folder))
    shutil.rmtree(left)


# -- who may, and whose it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "repo_id", "says"),
    [
        ("", "ann/x", "Nobody is logged in, and to push takes a token. Log in with `hf auth login`, or set HF_TOKEN"),
        ("read", "ann/x", "The token of 'ann' may only read, and 'ann/x' is to be written to"),
        ("hf_nobody", "ann/x", r"the Hub does not know the token \(401.*hf auth login"),
        (
            "org",
            "bob/x",
            "'bob/x' belongs to 'bob', and the token to 'eve' and the organizations acme. Push to 'eve/x'",
        ),
        ("org", "acme/x", None),
        ("org", "only-a-name", None),
    ],
)
def test_who_may_push(hub, client, folder, user, repo_id, says):
    known = {"read": lambda: hub.add_user("ann", "read"), "org": lambda: hub.add_user("eve", orgs=("acme",))}
    token = known[user]() if user in known else user or False
    mark = hub.journal.mark()
    options = {"folder": str(folder), "repo_id": repo_id, "check": False, "token": token}
    if says is None:
        assert client.call(push, **options)["repo_id"] == ("eve/only-a-name" if "/" not in repo_id else repo_id)
        return
    failure = client.fails(push, **options)
    assert failure.type == "PushError"
    assert re.search(says, failure.message), failure.message
    assert "Nothing was sent" in failure.message
    assert {(request.method, request.path) for request in hub.journal.requests[mark:]} <= {("GET", "/api/whoami-v2")}


OTHERS = {
    "another type": ({"config.json": b'{"model_type": "t5"}'}, "a model of type 't5', and this one is of type 'bert'"),
    "not ours": (
        {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"0"},
        r"a model of type 'bert' that hf_mpruner did not push \('pytorch_model\.bin' without a plan and a report\)",
    ),
    "another original": (
        {
            "config.json": b'{"model_type": "bert"}',
            "pytorch_model.bin": b"0",
            "report.json": b"{}",
            "pruning_plan.json": b'{"source_model": "bob/bert"}',
        },
        "a pruned 'bob/bert', and this one was made from 'somebody/bert'",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_model_of_others_is_not_replaced_unasked(hub, client, folder, name, what):
    files, says = OTHERS[what]
    repo = hub.add_repo(name, files)
    main = repo.at("main").oid
    options = {"folder": str(folder), "repo_id": name, "check": False}
    failure = client.fails(push, **options)
    assert re.search(rf"'{name}' holds {says}\. A push would put another model in its place", failure.message)
    assert f"e.g. '{name}-pruned'" in failure.message
    assert repo.at("main").oid == main
    client.call(push, **options, revision="pruned")
    client.call(push, **options, revision="pruned")
    made = client.call(push, **options, create_pr=True)
    assert (repo.at("main").oid, made["revision"], len(repo.history("pruned"))) == (main, "refs/pr/1", 3)
    client.call(push, **options, overwrite=True)
    assert "pytorch_model.bin" not in repo.files()
    client.call(push, **options)  # now it is ours
    assert len(repo.history()) == 3


def test_what_is_public_stays_public(hub, client, folder, name):
    hub.add_repo(name)
    options = {"folder": str(folder), "repo_id": name, "private": True}
    for more in ({}, {"revision": "side"}):
        failure = client.fails(push, **options, **more)
        assert re.search("is public, and private was asked for.*leave --private.*Nothing was sent", failure.message)
    assert set(hub.store.repo(name).branches) == {"main"}


def test_a_pull_request_is_opened_once(hub, client, folder, name):
    name = name.replace("ann/", "bob/")
    repo = hub.add_repo(name, {"README.md": HAND})
    hub.faults.add("POST", "/commit/", cut="after")
    made = client.call(push, folder=str(folder), repo_id=name, create_pr=True)
    assert (len(repo.discussions), made["pull_request_url"]) == (1, f"{hub.url}/{name}/discussions/1")
    assert (made["revision"], made["commit"], made["card"]) == ("refs/pr/1", repo.at("refs/pr/1").oid, "written")
    hub.faults.add("HEAD", "/resolve/.*/config.json", status=403)
    said = client.fails(push, folder=str(folder), repo_id=name, create_pr=True).message
    assert said.endswith(f"To finish: hf-mpruner push {folder} {name} --revision refs/pr/2"), said  # not a third one
    assert len(repo.discussions) == 2
    hub.faults.add("POST", "/commit/", cut="after")  # and nobody answers any more
    hub.faults.add("GET", "/refs", times=99, status=500)
    mark = hub.journal.mark()
    failure = client.fails(push, folder=str(folder), repo_id=name, create_pr=True, check=False)
    assert [request.path for request in hub.journal.find("POST", "/commit/", since=mark)]
    assert f"Whether the pull request was opened is not known: look at {hub.url}/{name}/discussions" in failure.message


def test_a_pull_request_to_nothing(hub, client, folder):
    failure = client.fails(push, folder=str(folder), repo_id="bob/nothing", create_pr=True)
    assert "There is no 'bob/nothing' that 'ann' may see, so no pull request can be opened there" in failure.message


def test_words_of_the_folder_that_are_not_written_are_named(hub, client, folder, name):
    client.call(push, folder=str(folder), repo_id=name, check=False)
    log = len(client.log)
    client.call(push, folder=str(folder), repo_id=name, check=False)
    assert "beside our section" not in client.log[log:]
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nMore words of a person.\n")
    client.call(push, folder=str(folder), repo_id=name, check=False)
    assert client.log[log:].count(f"To replace it: hf upload {name} {card} README.md") == 1
    assert b"More words" not in hub.store.repo(name).files()["README.md"]


def test_a_gated_base_is_named_and_not_asked_for(hub, client, tmp_path, name):
    hub.add_repo("bob/base", {"config.json": b"{}"})
    hub.store.repo("bob/base").gated = "auto"
    folder, mark = write_folder(tmp_path / "small", source="bob/base"), hub.journal.mark()
    client.call(push, folder=str(folder), repo_id=name)
    assert b"base_model: bob/base" in hub.store.repo(name).files()["README.md"]
    assert not hub.journal.find("*", "bob/base", since=mark)


def test_weights_of_an_earlier_push_go_with_it(hub, client, folder, name):
    repo = hub.add_repo(name, {
        "onnx/model.safetensors": b"of a person", "plots/mine.png": b"too", "plots/similarity_round_9_x.png": b"ours"
    })  # fmt: skip
    client.call(push, folder=str(folder), repo_id=name)
    client.call(reshard, folder=str(folder), size=20_000)
    parts = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(parts) > 1
    client.call(push, folder=str(folder), repo_id=name)
    assert "model.safetensors" not in repo.files()
    assert {"onnx/model.safetensors", "plots/mine.png"} <= set(repo.files())
    assert "plots/similarity_round_9_x.png" not in repo.files()
    assert parts | {"model.safetensors.index.json"} <= set(repo.files())
    assert client.call(logits, place=name) == client.call(logits, place=str(folder))
    assert len(repo.history()) == 4


def reshard(folder, size):
    """Save the weights in parts of so many bytes."""
    import pathlib

    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    pathlib.Path(folder, "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=size)


# -- what arrives, and what must not leave -----------------------------------------------------------------------------


def test_what_arrived_is_compared(hub, client, folder, name):
    options = {"folder": str(folder), "repo_id": name}
    client.call(push, **options)
    client.call(push, **options)  # compared as well, though nothing was sent
    config, weights = folder / "config.json", folder / "model.safetensors"
    was = config.read_text(), weights.read_bytes()

    def while_loading(change):
        """The folder becomes another model after it was sent: as good as another one on the Hub."""
        hub.faults.add("HEAD", r"/resolve/.*/config\.json", before=change)
        failure = client.fails(push, **options)
        config.write_text(was[0])
        weights.write_bytes(was[1])
        assert failure.type == "PushError"
        return failure.message

    said = while_loading(lambda: config.write_text(was[0].replace('"gelu"', '"relu"')))
    assert re.search(r"computes another 'logits' than the folder does, with equal weights: its config differs", said)
    said = while_loading(lambda: weights.write_bytes(was[1][:-4] + b"\0\0\x80\x3f"))
    assert re.search(r"What is on the Hub is not what was sent: '.*' differs \(1 of \d+ tensors", said)
    hub.faults.add("HEAD", r"/resolve/.*/model\.safetensors", status=403)
    said = client.fails(push, **options).message
    assert re.search(
        rf"The push itself is done: {hub.url}/{name}/commit/\w+\. Cannot load '{name}' back to compare it: .*"
        rf"To finish: hf-mpruner push {folder} {name}$",
        said,
    )


def test_no_token_and_no_path_leaves(hub, client, folder, name):
    place = str(folder.parent / "where/it/was")
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**words, "name_or_path": place}))
    for inner in ("checkpoint-3", ".cache", "_rollback"):
        (folder / inner).mkdir()
        (folder / inner / "file").write_text("stays")
    for left in ("training_args.bin", "optimizer.pt", "trainer_state.json"):
        (folder / left).write_text(hub.token)
    mark = hub.journal.mark()
    client.call(push, folder=str(folder), repo_id=name)
    assert "name_or_path" not in json.loads(hub.store.repo(name).files()["tokenizer_config.json"])
    assert not {path for path in hub.store.repo(name).files() if "file" in path or path.endswith((".bin", ".pt"))}
    (folder / "notes.txt").write_text(f"see {place}")
    failure = client.fails(push, folder=str(folder), repo_id=name)
    assert re.search(r"notes\.txt' holds the local path '.*/where/it/was', which must not leave", failure.message)
    (folder / "notes.txt").write_text(f"log in with {hub.token}")
    failure = client.fails(push, folder=str(folder), repo_id=name)
    assert "notes.txt' holds a token that this machine is logged in with" in failure.message
    assert hub.token not in failure.message
    assert not hub.journal.containing(hub.token, since=mark)
    assert not hub.journal.containing(place, since=mark)


def test_a_dry_run_sends_nothing(hub, client, folder, name):
    repo = hub.add_repo(name, {"README.md": HAND, "config.json": b'{"model_type": "bert"}'})
    mark = hub.journal.mark()
    code, out, err = client.call(command, folder=str(folder), repo_id=name, flags=["--dry_run", "--revision", "new"])
    assert code == 0, err
    size = len((folder / "model.safetensors").read_bytes())
    assert re.search(rf"^model\.safetensors +{size:,}$", out, re.MULTILINE)
    assert "README.md (changed):" in out
    assert "+base_model: somebody/bert" in out
    assert "Dry run: nothing was sent" in err
    assert {request.method for request in hub.journal.requests[mark:]} == {"GET"}
    assert len(repo.history()) == 2
    code, out, _ = client.call(command, folder=str(folder), repo_id=name, flags=["--dry_run", "--format", "json"])
    values = json.loads(out)
    assert (values["card"], values["bytes"]) == ("changed", sum(values["files"].values()))
    hub.faults.add("GET", "/resolve/.*/README.md", status=500, times=99)
    code, out, _ = client.call(command, folder=str(folder), repo_id=name, flags=["--dry_run"])
    assert (code, "README.md (unknown):\nthe Hub answers 500" in out) == (0, True)
    assert "\nREADME.md  " not in out
    hub.faults.clear()
    repo.write({"README.md": b"---\nlicense: [mit\n---\n"})
    code, out, _ = client.call(command, folder=str(folder), repo_id=name, flags=["--dry_run"])
    assert (code, "README.md (refused):\nThe metadata of README.md" in out) == (0, True)


@pytest.mark.parametrize(
    ("repo_id", "flags", "says"),
    [
        ("./out", [], "repo_id='./out' is a path"),
        (
            "ann/x",
            ["--create_pr", "--revision", "side"],
            "revision='side' with create_pr: a pull request goes to 'main'",
        ),
        ("ann/x", ["--revision", "0" * 40], "is a commit, which does not change any more"),
    ],
)
def test_wrong_use_of_the_command(client, folder, repo_id, flags, says):
    code, out, err = client.call(command, folder=str(folder), repo_id=repo_id, flags=flags)
    assert (code, out) == (2, "")
    assert says in err


# -- prune --push_to_hub -----------------------------------------------------------------------------------------------


def prune(model, data, out, flags):
    """`hf-mpruner prune` without training, in this process: exit code, stdout, stderr."""
    import contextlib
    import io

    from hf_mpruner.cli import main

    words = ["prune", model, "--dataset", data, "--eval_split", "train", "--output_dir", out]
    words += ["--recovery_epochs", "0", "--max_rounds", "1", "--max_metric_drop", "1"]
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        code = main([*words, *flags])
    return code, shown.getvalue(), said.getvalue()


@pytest.fixture
def words_of_prune(folder, tmp_path):
    """A model that was pruned can be pruned again: the folder is the model here."""
    rows = [f"{'a b a b'[: 1 + 2 * (i % 4)]},{i % 3}" for i in range(12)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return {"model": str(folder), "data": str(tmp_path / "rows.csv"), "out": str(tmp_path / "smaller")}


def test_prune_and_push(hub, client, words_of_prune, name):
    flags = ["--threshold", "0", "--push_to_hub", name, "--private"]
    code, out, err = client.call(prune, **words_of_prune, flags=flags)
    assert code == 0, err
    assert "accuracy" in out
    assert f"Pushed {hub.url}/{name}/commit/" in err
    repo = hub.store.repo(name)
    assert (repo.private, len(repo.history())) == (True, 2)
    assert client.call(logits, place=name) == client.call(logits, place=words_of_prune["out"])
    assert client.call(logits, place=name)[0] == 1


@pytest.mark.parametrize(
    ("flags", "says", "code"),
    [
        (["--push_to_hub", "./out"], "repo_id='./out' is a path", 2),
        (["--private"], "--private is about a push: name the repository with --push_to_hub REPO_ID", 2),
        (["--push_to_hub", "bob/x"], "'bob/x' belongs to 'bob', and the token to 'ann'", 1),
        (["--push_to_hub", "ann/taken"], "'ann/taken' holds a model of type 't5', and this one is of type 'bert'", 1),
    ],
)
def test_prune_asks_before_the_work(hub, client, words_of_prune, flags, says, code):
    if "ann/taken" in flags:
        hub.add_repo("ann/taken", {"config.json": b'{"model_type": "t5"}'})
    found = client.call(prune, **{**words_of_prune, "data": "/nowhere"}, flags=flags)  # not even the data is looked at
    assert found[:2] == [code, ""]
    assert says in found[2]


def test_prune_that_removed_nothing_pushes_nothing(hub, client, words_of_prune, name):
    code, _, err = client.call(prune, **words_of_prune, flags=["--threshold", "1", "--push_to_hub", name])
    assert code == 1
    assert f"So nothing was pushed. To push it as it is: hf-mpruner push {words_of_prune['out']} {name}\n" in err
    assert ("model", name) not in hub.store.repos


# -- a plan alone ------------------------------------------------------------------------------------------------------


def push_plan(repo_id, source_model="google-bert/bert-base-uncased", **options):
    """Push a plan of three layers of six; what `Pushed` says."""
    import dataclasses

    from hf_mpruner import PruningPlan
    from hf_mpruner.plan import StackPlan

    plan = PruningPlan({"encoder.layer": StackPlan(6, (0, 1, 5))}, "bert", source_model)
    return dataclasses.asdict(plan.push_to_hub(repo_id, **options))


def load_plan(path, offline=False, **options):
    """Which layers the plan of a place keeps."""
    from huggingface_hub import constants

    from hf_mpruner import PruningPlan

    constants.HF_HUB_OFFLINE = offline
    try:
        return PruningPlan.from_pretrained(path, **options).kept
    finally:
        constants.HF_HUB_OFFLINE = False


def test_a_plan_there_and_back(hub, client):
    repo = hub.add_repo("ann/plan", {"README.md": b"# Mine\n", "config.json": b"{}"})
    made = client.call(push_plan, repo_id="ann/plan")
    assert (made["card"], made["commit"]) == ("none", repo.at("main").oid)
    assert set(repo.files()) == {".gitattributes", "README.md", "config.json", PLAN_NAME}
    assert client.call(load_plan, path="ann/plan") == {"encoder.layer": [0, 1, 5]}
    assert client.call(load_plan, path="ann/plan", offline=True) == {"encoder.layer": [0, 1, 5]}  # from the cache
    side = client.call(push_plan, repo_id="ann/plan", source_model=None, revision="side")
    assert client.call(load_plan, path="ann/plan", revision="side") == {"encoder.layer": [0, 1, 5]}
    assert side["revision"] == "side"
    made = client.call(push_plan, repo_id="new-plan", private=True, create_pr=True)
    assert hub.store.repo("ann/new-plan").private
    assert client.call(load_plan, path="ann/new-plan", revision=made["revision"]) == {"encoder.layer": [0, 1, 5]}
    with pytest.raises(KeyError):
        hub.store.repo("ann/new-plan").files()[PLAN_NAME]


def push_and_load_width_plan(repo_id):
    """What the Hub's plan keeps, once it is there."""
    from hf_mpruner import WidthPlan
    from hf_mpruner.plan import UnitPlan

    WidthPlan({"encoder.layer.0.output.dense": UnitPlan(4, (0, 3))}, "bert").push_to_hub(repo_id)
    return WidthPlan.from_pretrained(repo_id).kept


def test_a_width_plan_there_and_back(hub, client):
    repo = hub.add_repo("ann/width", {"config.json": b"{}"})
    assert client.call(push_and_load_width_plan, repo_id="ann/width") == {"encoder.layer.0.output.dense": [0, 3]}
    assert "width_plan.json" in repo.files()


def test_a_plan_with_a_local_path_stays_here(hub, client):
    mark, place = hub.journal.mark(), f"{client.home}/bert"
    failure = client.fails(push_plan, repo_id="ann/leak", source_model=place)
    assert failure.type == "PushError"
    assert re.search(
        r"pruning_plan\.json holds the local path .*/bert.*source_model=None.*Nothing was sent", failure.message
    )
    assert not hub.journal.requests[mark:]


@pytest.mark.parametrize(
    ("what", "type", "says"),
    [
        (
            "no repository",
            "FileNotFoundError",
            "no such folder here, and no such repository on the Hub.*hf auth login",
        ),
        ("no plan", "FileNotFoundError", "the Hub has that repository, but no plan in it"),
        ("no revision", "FileNotFoundError", "the repository has no revision 'v7'. Pass a branch, tag or commit"),
        ("gated", "PermissionError", "is gated.*Ask for access on its page"),
        ("forbidden", "PermissionError", "the token may not read .*403"),
        ("down", "ConnectionError", "503|cannot be reached"),
        ("offline", "ConnectionError", "Unset HF_HUB_OFFLINE"),
        ("a path", "FileNotFoundError", "there is no such file or folder, and the Hub has no such names"),
        ("no json", "ValueError", "holds no pruning plan: pruning_plan.json is no JSON"),
        ("a list", "ValueError", "holds no pruning plan: pruning_plan.json is a list"),
    ],
)
def test_why_there_is_no_plan(hub, client, what, type, says):
    name = f"ann/without-{what.replace(' ', '-')}"
    content = {"no plan": None, "no json": b"<html>", "a list": b"[]"}.get(what, b"{}")
    options = {}
    if what not in ("no repository", "a path"):
        hub.add_repo("bob/gated" if what == "gated" else name, {PLAN_NAME: content} if content else {"a": b"a"})
    if what == "gated":
        name = "bob/gated"
        hub.store.repo(name).gated = "auto"
    elif what == "forbidden":
        hub.faults.add("HEAD", "/resolve/", status=403)
    elif what == "down":
        hub.faults.add("HEAD", "/resolve/", status=503, times=99)
    elif what == "no revision":
        options = {"revision": "v7"}
    elif what == "offline":
        options = {"offline": True}
    elif what == "a path":
        name = "./runs/nowhere"
    failure = client.fails(load_plan, path=name, **options)
    assert (failure.type, bool(re.search(says, failure.message))) == (type, True), failure.message
    assert name in failure.message
