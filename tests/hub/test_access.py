"""Who may do what: no token, an unknown one, one that only reads, a stranger's; private and gated repositories."""

from __future__ import annotations

import pytest


def attempt(token, actions):
    """`{action: exception}` of what was tried; None: it worked. `status name` for errors of the Hub."""
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi(token=token or False)

    def upload(repo_id, **options):
        api.upload_file(path_or_fileobj=b"x", path_in_repo=f"{api.token}.txt", repo_id=repo_id, **options)

    def download(repo_id):
        with tempfile.TemporaryDirectory() as cache:
            api.hf_hub_download(repo_id, "a.txt", cache_dir=cache)

    known = {
        "whoami": api.whoami,
        "create": lambda: api.create_repo("ann/new"),
        "create elsewhere": lambda: api.create_repo("somebody/new"),
        "create existing": lambda: api.create_repo("ann/public", exist_ok=True),
        "info": lambda: api.model_info("ann/public"),
        "download": lambda: download("ann/public"),
        "upload": lambda: upload("ann/public"),
        "pull request": lambda: upload("ann/public", create_pr=True),
        "private info": lambda: api.model_info("ann/private"),
        "private download": lambda: download("ann/private"),
        "private upload": lambda: upload("ann/private"),
        "missing info": lambda: api.model_info("ann/missing"),
        "gated info": lambda: api.model_info("ann/gated"),
        "gated download": lambda: download("ann/gated"),
    }
    found = {}
    for name in actions:
        try:
            known[name]()
            found[name] = None
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            found[name] = f"{status} {type(error).__name__}"
    return found


NOT_FOUND, NO_RIGHT = "404 RepositoryNotFoundError", "403 HfHubHTTPError"
ANONYMOUS = {
    "whoami": "None ValueError",
    "create": "401 HfHubHTTPError",
    "info": None,
    "download": None,
    "upload": "401 HfHubHTTPError",
    "private info": "401 RepositoryNotFoundError",
    "private download": "401 RepositoryNotFoundError",
    "missing info": "401 RepositoryNotFoundError",
    "gated info": None,
    "gated download": "401 GatedRepoError",
}
UNKNOWN = dict.fromkeys(["create", "info", "upload", "private info"], "401 HfHubHTTPError")
READ = {
    "whoami": None,
    "create": NO_RIGHT,
    "create existing": None,
    "download": None,
    "upload": NO_RIGHT,
    "pull request": NO_RIGHT,
    "private info": None,
    "private download": None,
    "private upload": NO_RIGHT,
    "gated download": None,
}
STRANGER = {
    "create": NO_RIGHT,
    "create existing": None,
    "info": None,
    "upload": NO_RIGHT,
    "pull request": None,
    "private info": NOT_FOUND,
    "private download": NOT_FOUND,
    "private upload": NOT_FOUND,
    "missing info": NOT_FOUND,
    "gated info": None,
    "gated download": "403 GatedRepoError",
}
OWNER = {**dict.fromkeys(READ), "create elsewhere": NO_RIGHT, "missing info": NOT_FOUND}


@pytest.fixture
def tokens(hub):
    if not hub.store.repos:
        hub.add_repo("ann/public", {"a.txt": b"a"})
        hub.add_repo("ann/private", {"a.txt": b"a"}, private=True)
        hub.add_repo("ann/gated", {"a.txt": b"a"}).gated = "manual"
    read, stranger = hub.add_user("ann", role="read"), hub.add_user("bob")
    return {"anonymous": "", "unknown": "hf_nobody", "read": read, "stranger": stranger, "owner": hub.token}


@pytest.mark.parametrize(
    ("who", "expected"),
    [("anonymous", ANONYMOUS), ("unknown", UNKNOWN), ("read", READ), ("stranger", STRANGER), ("owner", OWNER)],
)
def test_who_may_do_what(hub, client, tokens, who, expected):
    assert client.call(attempt, token=tokens[who], actions=list(expected)) == expected


def test_what_is_granted(hub, client, tokens):
    hub.store.repo("ann/gated").granted.add("dave")
    hub.store.create("model", "team/model", "ann")
    friend, member = hub.add_user("dave"), hub.add_user("carol", orgs=("team",))

    def write(token):
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="team/model")
        return [str(api.create_repo("team/other", private=True)), api.model_info("team/other").private]

    assert client.call(attempt, token=friend, actions=["gated download"]) == {"gated download": None}
    assert client.call(write, token=member) == [f"{hub.url}/team/other", True]


def test_the_text_of_a_refusal_reaches_the_user(hub, client, tokens):
    def upload(token):
        from huggingface_hub import HfApi

        HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="ann/public")

    assert "Invalid credentials in Authorization header" in client.fails(upload, token="hf_nobody").message
    assert "you must use a write token" in client.fails(upload, token=tokens["read"]).message
