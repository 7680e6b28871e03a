"""What the Hub refuses in a card, and what the journal knows about the requests."""

from __future__ import annotations

import base64
import json
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from hub.cards import check
from hub.journal import Journal, Request
from hub.kit import Hub, needs_hub

INDEX = {
    "name": "m",
    "results": [
        {
            "task": {"type": "text-classification"},
            "dataset": {"type": "glue", "name": "GLUE"},
            "metrics": [{"type": "accuracy", "value": 0.5}],
        }
    ],
}


def card(**metadata):
    return f"---\n{json.dumps(metadata)}\n---\n# A model\n"


def index_without(*path):
    index = json.loads(json.dumps(INDEX))
    found = index
    for step in path[:-1]:
        found = found[step]
    del found[path[-1]]
    return card(**{"model-index": [index]})


GOOD = card(
    base_model="bert-base-uncased", base_model_relation="finetune", datasets=["nyu-mll/glue"], language=["en", "pt-BR"],
    license="apache-2.0", library_name="transformers", tags=["pruned"], metrics=["accuracy"], **{"model-index": [INDEX]},
)  # fmt: skip
REFUSED = {
    card(base_model=""): '"base_model" is not allowed to be empty',
    card(base_model="/tmp/run/checkpoint-3"): '"base_model" with value "/tmp/run/checkpoint-3" is not valid',
    card(base_model=["a/b", "./out"]): '"base_model[1]" with value "./out" is not valid',
    card(base_model="a/b/c"): '"base_model" with value "a/b/c" is not valid',
    card(base_model=None): '"base_model" must be a string',
    card(base_model_relation="pruned"): '"base_model_relation" must be one of [adapter, merge, quantized, finetune]',
    card(datasets=["/var/data"]): '"datasets[0]" with value "/var/data" is not valid',
    card(license="my-own"): '"license" must be one of [',
    card(language="english"): '"language" with value "english" is not valid',
    "---\nlanguage: no\n---\n": '"language" must be a string',
    card(tags=["a", 1]): '"tags[1]" must be a string',
    "---\nvalue: !!python/object/apply:numpy._core.multiarray.scalar [1]\n---\n": "YAML metadata: could not determine",
    "---\na: [1\n---\n": "YAML metadata: ",
    "---\n- a\n---\n": '"value" must be of type object',
    index_without("name"): '"model-index[0].name" is required',
    index_without("results", 0, "task"): '"model-index[0].results[0].task.type" is required',
    index_without("results", 0, "dataset", "type"): '"model-index[0].results[0].dataset.type" is required',
    index_without("results", 0, "dataset", "name"): '"model-index[0].results[0].dataset.name" is required',
    index_without("results", 0, "metrics", 0, "type"): '"model-index[0].results[0].metrics[0].type" is required',
    index_without("results", 0, "metrics", 0, "value"): '"model-index[0].results[0].metrics[0].value" is required',
}


def test_good_cards_pass():
    assert check(GOOD) == ([], [])
    assert check(GOOD.replace("\n", "\r\n")) == ([], [])
    assert check("# Only text\n") == ([], ["empty or missing yaml metadata in repo card"])


@pytest.mark.parametrize(("content", "message"), REFUSED.items(), ids=REFUSED.values())
def test_bad_cards_are_refused(content, message):
    (error,) = check(content)[0]
    assert error.startswith(message)


def test_cards_in_commits(hub, client):
    def run(good, bad):
        from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
        from huggingface_hub.errors import HfHubHTTPError

        api, found = HfApi(), []
        api.create_repo("ann/card")
        api.upload_file(path_or_fileobj=good.encode(), path_in_repo="README.md", repo_id="ann/card")
        try:
            api.upload_file(path_or_fileobj=bad.encode(), path_in_repo="README.md", repo_id="ann/card")
        except ValueError as error:
            found.append(str(error))
        api._validate_yaml = lambda *args, **kwargs: None  # past the check of the client
        try:
            add = CommitOperationAdd("README.md", bad.encode())
            api.create_commit("ann/card", [add], commit_message="bad")
        except HfHubHTTPError as error:
            found.append([error.response.status_code, "is not allowed to be empty" in str(error)])
        return [found, ModelCard.load("ann/card").data.base_model]

    message = 'Invalid metadata in README.md.\n- "base_model" is not allowed to be empty'
    expected = [[message, [400, True]], "bert-base-uncased"]
    assert client.call(run, good=GOOD, bad=card(base_model="")) == expected
    assert len(hub.store.repo("ann/card").history()) == 2


@needs_hub("2.4", "ModelCard.validate asks huggingface.co, whatever HF_ENDPOINT says")
def test_model_cards_push_themselves(hub, client):
    def run(good, bad):
        from huggingface_hub import HfApi, ModelCard, metadata_update

        HfApi().create_repo("ann/itself")
        ModelCard(good).push_to_hub("ann/itself")
        metadata_update("ann/itself", {"license": "mit"}, overwrite=True)
        found = []
        for act in (ModelCard(bad).validate, lambda: ModelCard(bad).push_to_hub("ann/itself")):
            try:
                act()
            except ValueError as error:
                found.append(str(error))
        return [*found, ModelCard.load("ann/itself").data.license]

    mark = hub.journal.mark()
    by_card, by_push, licence = client.call(run, good=GOOD, bad=card(base_model=""))
    # `ModelCard.validate` shows the answer as it is.
    assert by_card == by_push
    assert [row["message"] for row in json.loads(by_card)["errors"]] == ['"base_model" is not allowed to be empty']
    assert licence == "mit"
    assert len(hub.store.repo("ann/itself").history()) == 3
    # Once by the card, without a token, and once by create_commit.
    asked = [request.token for request in hub.journal.find("POST", "/api/validate-yaml", since=mark)]
    assert asked[:2] == ["", hub.token]


def test_a_numpy_scalar_in_a_card_is_refused_by_client_and_hub(client):
    def build(check):
        import numpy
        from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

        result = EvalResult("text-classification", "glue", "GLUE", "accuracy", numpy.float64(0.5))
        content = f"---\n{ModelCardData(model_name='m', eval_results=[result]).to_yaml()}\n---\n"
        if check == "client":
            ModelCard(content)
        HfApi().create_repo("ann/numpy", exist_ok=True)
        HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id="ann/numpy")

    here, there = client.fails(build, check="client"), client.fails(build, check="hub")
    assert (here.type, there.type) == ("ConstructorError", "ValueError")
    assert "python/object/apply:numpy" in here.message
    assert "python/object/apply:numpy" in there.message


@pytest.mark.parametrize("lead", ["", "a", "ab"])
def test_the_journal_finds_what_base64_hides(lead):
    secret, journal = "/home/ann/secret", Journal()
    content = base64.b64encode(f"{lead}{secret} and more".encode()).decode()
    lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "file", "value": {"path": "a", "content": content}}]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    journal.add(Request("POST", "/api/models/ann/a/commit/main", "", {}, body, "hub"))
    journal.add(Request("POST", "/api/models/ann/a/commit/main", "", {"authorization": "Bearer x"}, b"{}", "hub"))
    assert secret.encode() not in body
    assert journal.containing(secret) == journal.requests[:1]
    assert not journal.containing("x" * 9)


def test_the_journal_finds_what_the_client_sent(hub, client, tmp_path):
    def run(path, secret):
        from huggingface_hub import HfApi

        api, name = HfApi(), "ann/leaky"
        api.create_repo(name)
        api.upload_file(path_or_fileobj=path, path_in_repo="weights.bin", repo_id=name)
        api.upload_file(path_or_fileobj=f'{{"from": "{secret}/a"}}'.encode(), path_in_repo="a.json", repo_id=name)
        api.upload_file(path_or_fileobj=b"1", path_in_repo="b", repo_id=name, commit_message=f"from {secret}")
        api.create_branch(name, branch="x y")

    secret, mark = "/home/ann/söcret dir", hub.journal.mark()
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(600) + secret.encode())
    client.call(run, path=str(path), secret=secret)
    found = [(request.method, request.path.split("/")[-2]) for request in hub.journal.containing(secret, since=mark)]
    assert ("PUT", "leaky") in found  # the LFS content, beyond the sample
    assert found.count(("POST", "commit")) == 2
    assert found.count(("POST", "preupload")) == 1  # the sample of a.json
    assert not hub.journal.containing(str(tmp_path), since=mark)
    assert [r.method for r in hub.journal.containing("branch/x y", since=mark)] == ["POST"]
    # The token travels in its own header only, and to the Hub only.
    assert not hub.journal.containing(hub.token)
    assert not [request for request in hub.journal.requests if request.token and request.origin == "storage"]


def test_what_the_server_cannot_do_fails_the_test(tmp_path):
    def ask(hub, path):
        with pytest.raises(HTTPError) as error:
            urlopen(hub.url + path)
        return error.value.code

    with Hub(tmp_path) as hub:
        assert ask(hub, "/api/models/a/b") == 401
        hub.check()
        assert ask(hub, "/api/collections") == 404
        with pytest.raises(AssertionError, match="GET /api/collections -> 404"):
            hub.check()
        hub.journal.unknown[0].known = True
        hub.add_repo("a/b").branches["main"] = "gone"
        assert ask(hub, "/api/models/a/b") == 500
        with pytest.raises(AssertionError, match="KeyError: 'gone'"):
            hub.check()
        hub.crashes.clear()
