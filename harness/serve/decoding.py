"""The thread that decodes: batches of waiting requests, one after the other, each round reported at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Batch, Generation, Request
from harness.decoding.decision import Decision
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.serve.jobs import Job, Progress

_POLL_S = 0.1


class _StreamedBatch(Batch):
    """A batch that reports what each round emitted, and stops the sequences of clients that have gone."""

    jobs: Sequence[Job] = ()

    @override
    def prefill(self) -> None:
        super().prefill()
        self._report()

    @override
    def record(self, draft: Draft, decision: Decision) -> bool:
        super().record(draft, decision)
        self._report()
        return self._any_left()

    def _report(self) -> None:
        for number, job in enumerate(self.jobs):
            made = self.generations[number]
            if fresh := made.output_ids[self._told[number] :]:
                self._told[number] += len(fresh)
                job.report(Progress(fresh))
            if job.cancelled and made.stop is None:
                self._stop(number, "cap")

    def follow(self, jobs: Sequence[Job]) -> None:
        """Report to these jobs, one per request."""
        self.jobs, self._told = jobs, [0] * len(jobs)


class StreamingLoop(DecodingLoop):
    """Our loop, whose rounds are reported to the jobs that it works for."""

    jobs: Sequence[Job] = ()

    @override
    def _batch(self, requests: Sequence[Request], drafter: Drafter, params: DecodingParams) -> Batch:
        batch = _StreamedBatch(
            self.target,
            requests,
            drafter,
            params,
            end_token_ids=self.end_token_ids,
            max_context=self.max_context,
            most=self.batch_size,
        )
        batch.follow(self.jobs)
        return batch


@dataclass
class Counters:
    """What was served so far."""

    requests: int = 0
    failed_requests: int = 0
    cancelled_requests: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    rounds: int = 0
    draft_rounds: int = 0
    """Rounds with a draft."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    running: int = 0

    def add(self, job: Job, made: Generation) -> None:
        """Count a generation."""
        self.requests += 1
        self.cancelled_requests += job.cancelled
        self.prompt_tokens += len(job.request.prompt)
        self.generation_tokens += len(made.output_ids)
        self.rounds += len(made.emitted)
        self.draft_rounds += sum(drafted > 0 for drafted in made.drafted)
        self.drafted_tokens += sum(made.drafted)
        self.accepted_tokens += sum(made.accepted)


class Decoder:
    """Decodes jobs in the order of their arrival; `serve` runs until `stop`."""

    def __init__(
        self, loop: StreamingLoop, drafter: Drafter, acceptor: Acceptor, batch_size: int, max_waiting: int
    ) -> None:
        """max_waiting: jobs that may wait; see `submit`."""
        self.counters = Counters()
        self._loop, self._drafter, self._acceptor = loop, drafter, acceptor
        self._batch_size = batch_size
        self._jobs: queue.Queue[Job] = queue.Queue(max_waiting)
        self._next: Job | None = None
        """A job that was taken but did not fit the batch before it."""
        self._stopped = threading.Event()

    @property
    def num_waiting(self) -> int:
        """Jobs that nobody works on yet."""
        return self._jobs.qsize() + (self._next is not None)

    def submit(self, job: Job) -> bool:
        """Have a job decoded; False where too many wait. Any thread may call it."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Have `serve` return after the batch that is running."""
        self._stopped.set()

    def serve(self) -> None:
        """Decode whatever comes, in the thread that calls this."""
        while not self._stopped.is_set():
            if jobs := self._take():
                self._decode(jobs)

    def _take(self) -> list[Job]:
        """Waiting jobs that can run together: they draw tokens alike."""
        jobs: list[Job] = []
        while len(jobs) < self._batch_size:
            job, self._next = self._next, None
            if job is None:
                try:
                    job = self._jobs.get_nowait() if jobs else self._jobs.get(timeout=_POLL_S)
                except queue.Empty:
                    break
            if job.cancelled:
                self.counters.cancelled_requests += 1
                continue
            if jobs and job.params != jobs[0].params:
                self._next = job
                break
            jobs.append(job)
        return jobs

    def _decode(self, jobs: Sequence[Job]) -> None:
        self.counters.running = len(jobs)
        self._loop.jobs = jobs
        requests = [job.request for job in jobs]
        try:
            made = self._loop.generate(requests, self._drafter, jobs[0].params, self._acceptor)
        except Exception as error:  # whatever it is, the client must hear of it and the server must continue
            self.counters.failed_requests += len(jobs)
            for job in jobs:
                job.report(Progress(error=error))
        else:
            for job, one in zip(jobs, made, strict=True):
                self.counters.add(job, one)
                job.report(Progress(ended=one))
        finally:
            self._loop.jobs = ()
            self.counters.running = 0

    def metrics(self) -> str:
        """The counters in Prometheus' text format."""
        lines: list[str] = []
        shown: dict[str, Any] = {**vars(self.counters), "waiting": self.num_waiting}
        for name, value in shown.items():
            gauge = name in ("running", "waiting")
            full = f"specbench_requests_{name}" if gauge else f"specbench_{name}_total"
            lines += [f"# TYPE {full} {'gauge' if gauge else 'counter'}", f"{full} {value}"]
        return "\n".join(lines) + "\n"
