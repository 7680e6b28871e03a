"""What is tried again, and after how long: a call that commits all or nothing may be repeated as a whole."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

TRIES = 6
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 16.0
# The Hub counts requests in windows of five minutes; who is told to wait longer is told so, and comes back.
LONGEST_RETRY_AFTER_SECONDS = 300.0
# huggingface_hub waits for ever by default. The longest answer that is worked for is that of a commit of many files.
ANSWER_SECONDS = 180.0
CONNECT_SECONDS = 30.0

# How hf_xet says, in a bare RuntimeError, that its storage failed after tries of its own.
XET_FAILURE = "CAS service error"

_TRANSIENT = (408, 412, 429)
Result = TypeVar("Result")


def patiently(action: Callable[[], Result], doing: str) -> Result:
    """Call until it works, the error is one that stays, or `TRIES` are used up; then the last error is raised.

    Args:
        action: the whole of what is to be done; must be safe to repeat.
        doing (`str`): what it does, for the log.
    """
    with limited_waiting():
        for number in range(1, TRIES):
            try:
                return action()
            except Exception as error:
                pause = find_pause(error, number)
                if pause is None:
                    raise
                logger.warning(
                    "%s: %s. Trying again in %g s (%d of %d).", doing, brief(error), pause, number + 1, TRIES
                )
            time.sleep(pause)
            _limit()  # after a failed connection it is another client
        return action()


def find_pause(error: BaseException, number: int) -> float | None:
    """Seconds to wait after the `number`th failure, or `None` if another try is no use."""
    if not is_transient(error):
        return None
    asked = retry_after(error)
    if asked is not None:
        return asked if asked <= LONGEST_RETRY_AFTER_SECONDS else None
    return float(min(FIRST_WAIT_SECONDS * 2 ** (number - 1), LONGEST_WAIT_SECONDS))


def is_transient(error: BaseException) -> bool:
    """Whether the same call may work a little later: the network, 408, 412, 429, 5xx, a page where data should be."""
    if any(isinstance(found, OfflineModeIsEnabled) for found in causes(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT or status >= 500
    if isinstance(error, RuntimeError) and XET_FAILURE in str(error):
        return True
    passing = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)
    lasting = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    return any(isinstance(found, passing) and not isinstance(found, lasting) for found in causes(error))


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error, or of the one that it was raised from."""
    answer = _answer_of(error)
    return None if answer is None else int(answer.response.status_code)


def server_message(error: BaseException) -> str:
    """What the Hub said, in one line; empty if it said nothing."""
    answer = _answer_of(error)
    return " ".join((getattr(answer, "server_message", None) or "").split())


def retry_after(error: BaseException) -> float | None:
    """Seconds that the Hub asked to wait, by `Retry-After` or by its rate limit header; `None` if it did not."""
    answer = _answer_of(error)
    if answer is None or answer.response.status_code not in (429, 503):
        return None
    text = answer.response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    for part in answer.response.headers.get("RateLimit", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == "t" and value.isdigit():
            return float(value)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def brief(error: BaseException) -> str:
    """An error in a few words."""
    status = status_of(error)
    if status is not None:
        return f"the Hub answers {status}" + (f" ({text})" if (text := server_message(error)) else "")
    if isinstance(error, json.JSONDecodeError):
        return "a page came where the Hub's data should be"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def limited_waiting() -> Iterator[None]:
    """Give the Hub's client of this process a time limit for a while, unless its owner gave it one."""
    ours = _limit()
    try:
        yield
    finally:
        if ours:
            get_session().timeout = httpx.Timeout(None)


def time_limit() -> float:
    """Seconds after which an answer is no longer waited for."""
    return get_session().timeout.read or ANSWER_SECONDS


def _limit() -> bool:
    session = get_session()
    free = bool(session.timeout == httpx.Timeout(None))
    if free:
        session.timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    return free


def _answer_of(error: BaseException) -> HfHubHTTPError | None:
    return next((found for found in causes(error) if isinstance(found, HfHubHTTPError)), None)
