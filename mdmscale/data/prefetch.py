"""Worker processes make batches ahead of training. The batches are exactly those that the loader makes."""

import pickle
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mdmscale.data.batch import Batch
from mdmscale.data.loader import TrainLoader
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.system.errors import UserError
from mdmscale.system.stop import StopRequest

_STEPS_AHEAD = 2  # per worker

Request = tuple[int, TSampler]
StepBatches = list[Batch]
Answer = StepBatches | UserError


def default_num_workers(device: torch.device) -> int:
    """0 on the CPU, where the model needs the cores; 2 for a GPU: one keeps up, two also cover a stall."""
    return 2 if device.type == "cuda" else 0


class Prefetcher:
    """Returns what `loader.micro_batches` returns, made ahead of time while steps are requested in order.

    A request out of order, such as after a new p(t), gets the right answer too, but later: batches that were
    made for the expected requests are dropped, and the workers go on. With `num_workers` = 0 a step is made
    when it is requested; None means the device's default. For a CUDA device batches are pinned. The workers
    run from the first request until the `with` block ends.
    """

    def __init__(self, loader: TrainLoader, num_workers: int | None, device: torch.device) -> None:
        self._num_workers = default_num_workers(device) if num_workers is None else num_workers
        self._pins = device.type == "cuda"
        self._loader = loader
        self._sent: deque[Request] = deque()  # not answered yet; answers come in this order
        self._next: Request  # the next one to send
        self._answers: Any = None

    def micro_batches(self, step: int, t_sampler: TSampler) -> StepBatches:
        """This rank's micro-batches of `step`, see `TrainLoader`.

        Raises:
            UserError: the one that the loader raised, in this process or in a worker.
        """
        if not any(_is_for(request, step, t_sampler) for request in self._sent):
            self._next = step, t_sampler
        if self._answers is None:
            self._answers = self._start()
        is_wanted = False
        while not is_wanted:
            answer = next(self._answers)
            is_wanted = _is_for(self._sent.popleft(), step, t_sampler)
        if isinstance(answer, _Parcel):
            answer = answer.open()
        if isinstance(answer, UserError):
            raise answer
        return answer

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers. They hold no state, so a worker that is still busy after a while is killed."""
        if self._answers is None or not self._num_workers:
            return
        # Deleting the iterator would call it too, but the traceback of an error can keep the iterator alive.
        with suppress(RuntimeError):  # a worker that fails now no longer matters
            self._answers._shutdown_workers()
        for worker in self._answers._workers:
            if worker.is_alive():
                worker.kill()
                worker.join()

    def _start(self) -> Iterator[Any]:
        """Start the workers, in which torch computes on one thread.

        They are spawned, not forked, for three reasons. This process has threads and locks of gloo or NCCL,
        of CUDA and of the watchdog; a forked child could wait for one of these locks and never get it. The
        pages that InfiniBand has registered do not survive a fork. A host that holds an offloaded optimizer
        may not have enough memory to commit it twice. Workers of a forkserver would start faster, but they
        would not be children of this process, and torch notices at once only when a child dies.
        """
        in_workers: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": _STEPS_AHEAD}
        answers = DataLoader(
            _Answering(self._loader),
            batch_size=None,
            sampler=self._requests(),
            num_workers=self._num_workers,
            pin_memory=self._pins,
            generator=torch.Generator(),  # or DataLoader would draw the workers' seed from the global one
            **(in_workers if self._num_workers else {}),
        )
        with _stop_signals_blocked():
            return iter(answers)

    def _requests(self) -> Iterator[Request]:
        """The requests to send, without end. So workers also make a few steps that the run never uses."""
        while True:
            step, t_sampler = request = self._next
            self._sent.append(request)
            self._next = step + 1, t_sampler
            yield request


class _Parcel:
    """An answer on its way from a worker, pickled by the main thread of the worker.

    Otherwise the thread of the queue would pickle it. That thread is cut off when the worker ends, and inside
    torch's C++ code this aborts the process.
    """

    def __init__(self, answer: Answer) -> None:
        self._content = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)

    def open(self) -> Answer:
        return pickle.loads(self._content)

    def pin_memory(self) -> Answer:
        """The answer in page-locked memory. DataLoader calls this in a thread of the main process."""
        answer = self.open()
        if isinstance(answer, UserError):
            return answer
        return [batch.pin_memory() for batch in answer]


class _Answering(Dataset[Answer | _Parcel]):
    """Answers requests, in a worker, or in the main process where there are no workers."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __getitem__(self, request: Request) -> Answer | _Parcel:
        answer: Answer
        try:
            answer = self._loader.micro_batches(*request)
        except UserError as error:  # raised here, DataLoader would wrap its message in a traceback
            answer = error
        return answer if get_worker_info() is None else _Parcel(answer)


def _is_for(request: Request, step: int, t_sampler: TSampler) -> bool:
    return request[0] == step and request[1] is t_sampler


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Processes that are started inside never receive the signals that ask a run to stop.

    Such signals often go to all processes of a run, but the workers must still make the batches of the step
    that is being finished. Workers inherit the mask, so it holds from their start. A signal to this process
    waits until the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
    try:
        resource_tracker.ensure_running()  # to start it unblocks some signals, so block them again
        signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
