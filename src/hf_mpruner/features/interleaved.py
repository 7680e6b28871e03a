"""Many forward passes of one model side by side: each stops before every block, so that one block can do all batches.

A pass runs in a thread of its own, and only one thread runs at a time. So whatever a model does between its blocks happens
as it always does: masks, positions, kinds of attention that alternate, what one block hands to the next, a decoder that needs
its encoder.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.errors import MPrunerError

# What every module has, what changes when accelerate's hooks are put on, and what is replaced here.
_NOT_STATE = {*vars(nn.Module()), "forward", "_hf_hook", "_old_forward"}
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class StatefulModelError(MPrunerError):
    """A model that remembers something of one batch while it runs another."""


class _Closed(Exception):
    """Ends a pass that nobody needs any more."""


class Passes:
    """The forward passes of some batches.

    Args:
        model (`nn.Module`): in eval mode.
        blocks (`Mapping[nn.Module, object]`): where passes stop; their `forward` is replaced until `undo` closes.
        undo (`ExitStack`): ends what still runs when it closes.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[nn.Module, object], undo: ExitStack) -> None:
        """Replace the blocks' `forward`."""
        self._model = model
        self._running: Pass | None = None
        self._forwards: dict[nn.Module, Callable[..., Any]] = {}
        self._passes: list[Pass] = []
        undo.callback(self._close)
        for block in blocks:
            self._forwards[block] = block.forward
            undo.callback(_put_back, block, vars(block).get("forward"))
            block.forward = self._stop_in(block)

    def start(self, batch: Mapping[str, Any]) -> Pass:
        """Run the model on a batch up to its first block.

        Args:
            batch (`Mapping`): arguments of the model's forward, on its device.
        """
        one = Pass(lambda: self._model(**batch))
        self._passes.append(one)
        self._go(one)
        return one

    def run_block(self, one: Pass) -> Any:
        """Run the block that a pass waits at; `goes_on` must follow, with what it put out."""
        block, args, kwargs = one.take_call()
        return self._forwards[block](*args, **kwargs)

    def goes_on(self, one: Pass, output: Any) -> None:
        """Hand a block's output to its pass, which runs up to the next block."""
        one.answer = output
        self._go(one)

    def _go(self, one: Pass) -> None:
        self._running = one
        one.resume()

    def _stop_in(self, block: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._running is None:
                return self._forwards[block](*args, **kwargs)
            return self._running.ask((block, args, kwargs))

        return forward

    def _close(self) -> None:
        for one in self._passes:
            one.close()
        self._running = None


class Pass:
    """One forward pass.

    Args:
        run (callable): the whole pass.

    Attributes:
        call: the block that it waits at, with arguments; `None` when it is over.
        answer: what the block put out.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        """Nothing runs before `resume`."""
        self.call: Call | None = None
        self.answer: Any = None
        self._run: Callable[[], Any] | None = run
        self._error: BaseException | None = None
        self._closing = False
        self._mine, self._back = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Run up to the next block, or the end. Raises what the pass raises."""
        self._mine.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def take_call(self) -> Call:
        """The call that it waits with; nothing of it is kept here."""
        if self.call is None:
            raise RuntimeError("this pass waits at no block")
        call, self.call = self.call, None
        return call

    def ask(self, call: Call) -> Any:
        """In the pass's own thread: wait for somebody to run a block."""
        self.call = call
        del call
        self._back.release()
        self._mine.acquire()
        if self._closing:
            raise _Closed
        answer, self.answer = self.answer, None
        return answer

    def close(self) -> None:
        """End it where it waits."""
        self._closing = True
        self.call = self.answer = None
        self._mine.release()
        self._thread.join()

    def _work(self) -> None:
        self._mine.acquire()
        run, self._run = self._run, None
        try:
            with torch.no_grad():  # which holds for one thread alone
                if run is not None and not self._closing:
                    run()
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.call = None
            self._back.release()


class StateWatch:
    """Notices modules that remember something between calls: passes side by side would read each other's.

    Args:
        model (`nn.Module`): before it runs.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at all modules."""
        self._model = model
        self._before = self._look()

    def check(self) -> None:
        """Raises `StatefulModelError`, naming a module and its attribute, if one is not as it was."""
        now = self._look()
        for place in now.keys() | self._before.keys():
            if place not in now or place not in self._before or not _same(now[place], self._before[place]):
                raise StatefulModelError(f"'{place[0]}' keeps '{place[1]}' while it runs")

    def _look(self) -> dict[tuple[str, str], tuple[Any, Any]]:
        return {
            (path, name): (value, _mark(value))
            for path, module in self._model.named_modules()
            for name, value in (*vars(module).items(), *module._buffers.items())
            if name not in _NOT_STATE
        }


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


def _mark(value: Any) -> Any:
    """What shows that an object was changed in place."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return len(value) if isinstance(value, list | dict | set) else None


def _put_back(block: nn.Module, own: Any) -> None:
    """The instance's own `forward`, which accelerate's hooks set, or the class's again."""
    if own is None:
        vars(block).pop("forward", None)
    else:
        block.forward = own
