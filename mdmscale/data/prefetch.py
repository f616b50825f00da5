"""Batches made ahead of training by worker processes: the very ones that the loader would make itself."""

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

_STEPS_AHEAD = 2  # a worker

Request = tuple[int, TSampler]
StepBatches = list[Batch]
Answer = StepBatches | UserError


def default_num_workers(device: torch.device) -> int:
    """None on the CPU, whose cores the model needs; beside a GPU one keeps up, and two outlast a stall."""
    return 2 if device.type == "cuda" else 0


class Prefetcher:
    """Answers what `loader.micro_batches` would, ahead of time while one step is asked for after another.

    Any other request, as after a new p(t), is answered as rightly, only later: what was made for the expected
    ones is passed over, and the workers stay. With `num_workers` = 0 a step is made when it is asked for;
    None is the device's default. For a CUDA device batches are pinned. Workers live from the first request
    until the prefetcher is left.
    """

    def __init__(self, loader: TrainLoader, num_workers: int | None, device: torch.device) -> None:
        self._num_workers = default_num_workers(device) if num_workers is None else num_workers
        self._pins = device.type == "cuda"
        self._loader = loader
        self._sent: deque[Request] = deque()  # and not answered yet; answers come in this order
        self._next: Request  # to send
        self._answers: Any = None

    def micro_batches(self, step: int, t_sampler: TSampler) -> StepBatches:
        """This rank's micro-batches of `step`, see `TrainLoader`.

        Raises:
            UserError: as the loader raised it, in whichever process.
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
        """End the workers. They keep nothing, so one that is still busy after a while is killed."""
        if self._answers is None or not self._num_workers:
            return
        # What deleting it would call, but the traceback of an error can keep it from being deleted.
        with suppress(RuntimeError):  # of a worker that ends badly, which is no matter any more
            self._answers._shutdown_workers()
        for worker in self._answers._workers:
            if worker.is_alive():
                worker.kill()
                worker.join()

    def _start(self) -> Iterator[Any]:
        """Start the workers, in which torch computes on one thread.

        By spawn: this process has threads and locks of gloo or NCCL, of CUDA and of the watchdog, for which a
        forked child could wait for ever; InfiniBand's registered pages don't outlive a fork; and a host that
        holds an offloaded optimizer may not be able to promise its memory twice. The workers of a forkserver
        would start faster, but they would not be this process's children, whose death torch notices at once.
        """
        in_workers: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": _STEPS_AHEAD}
        answers = DataLoader(
            _Answering(self._loader),
            batch_size=None,
            sampler=self._requests(),
            num_workers=self._num_workers,
            pin_memory=self._pins,
            generator=torch.Generator(),  # its seed for the workers would be drawn from the global one
            **(in_workers if self._num_workers else {}),
        )
        with _stop_signals_blocked():
            return iter(answers)

    def _requests(self) -> Iterator[Request]:
        """Without end: some steps beyond the run's last are made in vain."""
        while True:
            step, t_sampler = request = self._next
            self._sent.append(request)
            self._next = step + 1, t_sampler
            yield request


class _Parcel:
    """An answer on its way from a worker, pickled by the worker's main thread.

    The queue's own thread, which would do it otherwise, is cut off wherever it is when the worker ends: in
    torch's C++ that aborts the process.
    """

    def __init__(self, answer: Answer) -> None:
        self._content = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)

    def open(self) -> Answer:
        return pickle.loads(self._content)

    def pin_memory(self) -> Answer:
        """The answer in page-locked memory: what DataLoader calls, in a thread of this process."""
        answer = self.open()
        if isinstance(answer, UserError):
            return answer
        return [batch.pin_memory() for batch in answer]


class _Answering(Dataset[Answer | _Parcel]):
    """What a worker does, or without workers this process."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __getitem__(self, request: Request) -> Answer | _Parcel:
        answer: Answer
        try:
            answer = self._loader.micro_batches(*request)
        except UserError as error:  # raised here its message would become a traceback's
            answer = error
        return answer if get_worker_info() is None else _Parcel(answer)


def _is_for(request: Request, step: int, t_sampler: TSampler) -> bool:
    return request[0] == step and request[1] is t_sampler


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Processes that are started within never see the signals that ask a run to stop.

    These often go to all of its processes, and a step must still get its batches to be finished. Being
    inherited, the mask holds from a worker's first instant; a signal to this process itself waits meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
    try:
        resource_tracker.ensure_running()  # multiprocessing's; starting it unblocks some, so block them again
        signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
