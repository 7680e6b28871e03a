"""`hub`, as far as no Hub is needed: names of repositories, who may write, what is tried again and how it is said."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx

from hf_mpruner.errors import PushError
from hf_mpruner.hub import Account, check_repo_id, check_target, explain
from hf_mpruner.hub.retry import ANSWER_SECONDS, brief, find_pause, patiently, status_of


@pytest.mark.parametrize("repo_id", ["ann/bert", "bert-pruned", "Ann_1/x.y-z", "a/" + "b" * 96])
def test_names_that_the_hub_takes(repo_id: str) -> None:
    assert check_repo_id(repo_id) == repo_id


@pytest.mark.parametrize(
    ("repo_id", "reason", "instead"),
    [
        ("", "names no repository", "NAMESPACE/NAME"),
        (None, "repo_id=None names no repository", "NAMESPACE/NAME"),
        ("./out", "is a path", "NAMESPACE/out"),
        ("../runs/out", "is a path", "NAMESPACE/out"),
        ("/data/out", "is a path", "NAMESPACE/out"),
        ("~/out", "is a path", "NAMESPACE/out"),
        ("C:\\runs\\out", "is a path", "NAMESPACE/out"),
        ("..", "is a path", "NAMESPACE/NAME"),
        ("https://huggingface.co/ann/bert/tree/main", "is a web address", "ann/bert"),
        ("hf.co/ann/bert", "is a web address", "ann/bert"),
        ("ann/bert/plots", "has 2 slashes, one is allowed", "NAMESPACE/plots"),
        ("ann/", "nothing stands beside the slash", "NAMESPACE/ann"),
        ("ann/my bert", "' ' in 'my bert' is not allowed", "ann/my-bert"),
        ("ann/ü", "'ü' in 'ü' is not allowed", "ann/NAME"),
        ("-ann/bert", "'-ann' must neither begin nor end with", "ann/bert"),
        ("ann/a--b", "'a--b' must neither begin", "ann/a-b"),
        ("ann/bert.git", "must not end with '.git'", "ann/bert"),
        ("ann/" + "b" * 97, "'bbbbbbbbbbbb...' has 97 characters, at most 96", "ann/" + "b" * 96),
    ],
)
def test_names_that_are_refused(repo_id: str, reason: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as found:
        check_repo_id(repo_id)
    assert repr(repo_id) in str(found.value)
    assert f"'{instead}'" in str(found.value)
    if "NAME" not in instead:  # what is offered is taken
        assert check_repo_id(instead) == instead


def test_a_folder_is_no_repository(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smaller").mkdir()
    with pytest.raises(ValueError, match=r"repo_id='smaller' is a folder here.*type 'NAMESPACE/smaller'"):
        check_repo_id("smaller")
    assert check_repo_id("ann/smaller") == "ann/smaller"


def answer(status: int, message: str | None = None, **headers: str) -> HfHubHTTPError:
    """The error that huggingface_hub makes of an answer."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, headers=names, request=httpx.Request("POST", "https://huggingface.co/api"))
    return HfHubHTTPError("text", response=response, server_message=message)


class XetAuthenticationError(PermissionError):
    """As hf_xet names it, which need not be installed."""


def behind(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (answer(500), [1, 2, 4, 8, 16, 16]),
        (answer(504), [1]),
        (answer(408), [1]),
        (answer(412), [1]),
        (answer(429), [1, 2]),
        (answer(429, Retry_After="7"), [7, 7]),
        (answer(503, Retry_After="2"), [2]),
        (answer(429, Retry_After="300"), [300]),
        (answer(429, Retry_After="301"), [None]),
        (answer(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), [1]),
        (answer(429, RateLimit='"api";r=0;t=55'), [55]),
        (answer(400), [None]),
        (answer(401), [None]),
        (answer(403), [None]),
        (answer(404), [None]),
        (answer(409), [None]),
        (behind(RuntimeError("Error while uploading"), answer(503)), [1]),
        (behind(RuntimeError("Error while uploading"), answer(400)), [None]),
        (behind(RuntimeError("Error while uploading"), httpx.ReadError("cut")), [1]),
        (behind(ValueError("Invalid metadata in README.md"), answer(400)), [None]),
        (httpx.ConnectError("no route"), [1]),
        (httpx.ReadTimeout("slow"), [1]),
        (httpx.RemoteProtocolError("cut"), [1]),
        (httpx.UnsupportedProtocol("ftp"), [None]),
        (ConnectionError("Network error"), [1]),
        (json.JSONDecodeError("Expecting value", "<html>", 0), [1]),
        (RuntimeError("Data processing error: CAS service error : Request failed after 5 retries"), [1]),
        (OfflineModeIsEnabled("off"), [None]),
        (RuntimeError("a defect"), [None]),
        (FileNotFoundError("gone"), [None]),
    ],
    ids=lambda value: brief(value).partition(":")[0] if isinstance(value, Exception) else "",
)
def test_what_is_tried_again_and_when(error: Exception, pauses: list[float | None]) -> None:
    assert [find_pause(error, number) for number in range(1, len(pauses) + 1)] == pauses


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(401, "Invalid"), "the Hub does not know the token (401: Invalid). Log in with `hf auth login`"),
        (answer(403, "no right"), "the token may not do that in 'ann/x' (403: no right)"),
        (answer(404, "No such page"), "the Hub refuses it (404: No such page)"),
        (answer(412), "others commit to 'ann/x' faster than this (412). Try again, or with --create_pr"),
        (answer(429), "too many requests of this account (429). Try again in some minutes"),
        (answer(502), "the Hub answers 502, at the last of 6 tries too"),
        (httpx.ConnectError("no route"), "the Hub cannot be reached (ConnectError: no route). Check the network"),
        (json.JSONDecodeError("Expecting", "<", 0), "(a page came where the Hub's data should be). Check the network"),
        (OSError(28, "No space left on device"), "the disk is full (OSError: [Errno 28] No space left on device)"),
        (
            RuntimeError("CAS service error : x"),
            "the Hub's storage failed (RuntimeError: CAS service error : x). Try ag",
        ),
        (
            XetAuthenticationError("401"),
            "the Hub's storage does not take the token (XetAuthenticationError: 401). Log",
        ),
        (RuntimeError("a defect"), "RuntimeError: a defect. Set HF_MPRUNER_DEBUG=1"),
    ],
    ids=lambda value: brief(value).partition(":")[0] if isinstance(value, Exception) else "",
)
def test_errors_in_words(error: Exception, says: str) -> None:
    text = explain(error, "ann/x", "push to 'ann/x'")
    assert text.startswith("Cannot push to 'ann/x': ")
    assert says in text


def test_the_status_of_an_error_behind_another() -> None:
    assert status_of(behind(RuntimeError("x"), behind(ValueError("y"), answer(418)))) == 418
    assert status_of(RuntimeError("x")) is None


def test_who_may_write(tmp_path, monkeypatch) -> None:
    account = Account("ann", ("acme",), "write")
    assert account.complete("x") == "ann/x"
    for name in ("ann/x", "acme/x"):
        account.check(name)
    account.check("bob/x", create_pr=True)
    with pytest.raises(
        PushError, match=r"'bob/x' belongs to 'bob', and the token to 'ann' and the organizations acme"
    ):
        account.check("bob/x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    with pytest.raises(PushError, match=r"belongs to 'runs' \('runs/x' is also a folder here: was it meant\?\)"):
        account.check("runs/x")
    account.check_may_make("ann/x")
    with pytest.raises(
        PushError, match=r"There is no 'bob/x' .*so no pull request can be opened there.*push to 'ann/x'"
    ):
        account.check_may_make("bob/x")
    for with_pr in (True, False):  # such a token opens no pull request either
        with pytest.raises(PushError, match=r"The token of 'ann' may only read, and 'ann/x' is to be written to"):
            Account("ann", role="read").check("ann/x", create_pr=with_pr)


def test_revisions_that_cannot_be_pushed_to() -> None:
    check_target(None, True)
    check_target("main", True)
    check_target("refs/pr/1", False)
    with pytest.raises(ValueError, match=r"revision='side' with create_pr: a pull request goes to 'main'"):
        check_target("side", True)
    with pytest.raises(ValueError, match=rf"revision='{'a' * 40}' is a commit"):
        check_target("a" * 40, False)


def test_the_client_of_the_process_has_a_time_limit_for_as_long_as_it_is_ours(monkeypatch) -> None:
    session, seen, tries = get_session(), [], iter([ConnectionError("cut"), httpx.ReadTimeout("slow"), None])
    monkeypatch.setattr("time.sleep", seen.append)

    def act() -> str:
        seen.append(session.timeout.read)
        patiently(lambda: None, "something inside")
        seen.append(session.timeout.read)
        if error := next(tries):
            raise error
        return "done"

    assert session.timeout == httpx.Timeout(None)
    assert patiently(act, "something") == "done"
    limit = [ANSWER_SECONDS] * 2
    assert seen == [*limit, 1, *limit, 2, *limit]
    assert session.timeout == httpx.Timeout(None)
    monkeypatch.setattr(session, "timeout", httpx.Timeout(5))  # somebody knows better
    patiently(lambda: seen.append(session.timeout.read), "something")
    assert seen[-1] == session.timeout.read == 5
