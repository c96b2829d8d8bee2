"""The dialects of servers that tell more in a language of their own than in OpenAI's."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from harness.engines.clients.streams import Client, EngineCounts, Question, Reply
from harness.engines.faults import EngineFault


class LlamaCppClient(Client):
    """llama-server's `/completion`: token ids both ways, drafted and accepted tokens in its timings.

    It sends an event per token, also of tokens that one round accepted, so its events are no rounds. It keeps
    the end token to itself, and the ids of tokens that are a part of a character: such an answer is refused.
    """

    @override
    async def stream(self, question: Question, reply: Reply) -> None:
        greedy = question.temperature == 0
        body: dict[str, Any] = {
            "prompt": list(question.prompt),
            "n_predict": question.max_tokens,
            "stream": True,
            "return_tokens": True,
            # Neither the prompt of an earlier request nor its text may help this one.
            "cache_prompt": False,
            "temperature": question.temperature,
            "samplers": ["top_k"] if greedy else ["top_k", "top_p", "temperature"],
            "top_k": 1 if greedy else question.top_k,
            "top_p": question.top_p,
            "seed": question.seed % 2**31,
            "ignore_eos": question.ignore_end,
        }
        async for event in self.events("/completion", body):
            if error := event.get("error"):
                raise EngineFault("engine-error", str(error))
            last = bool(event.get("stop"))
            # The last event repeats nothing, but lists all tokens where nothing was streamed.
            ids = [] if last else event.get("tokens")
            if not isinstance(ids, list):
                raise EngineFault("engine-garbage", f"an event without tokens: {str(event)[:200]}")
            reply.take(ids, event.get("content") or "")
            if last:
                reply.finish = "length" if event.get("stop_type") == "limit" else "stop"
                timings = event.get("timings") or {}
                reply.num_reported = timings.get("predicted_n")
                _refuse_lost(reply)
                if "draft_n" in timings:
                    reply.counts = EngineCounts(
                        None, int(timings["draft_n"]), int(timings["draft_n_accepted"])
                    )


def _refuse_lost(reply: Reply) -> None:
    """Raise EngineFault where fewer ids have come than the server has written, the end token apart."""
    lost = 0 if reply.num_reported is None else reply.num_reported - len(reply.ids)
    if lost > (reply.finish == "stop"):
        raise EngineFault(
            "engine-garbage", f"the stream lacks the ids of {lost} tokens, which are parts of characters"
        )


class SGLangClient(Client):
    """SGLang's `/generate`: token ids both ways, and the number of verify steps of each request."""

    @override
    async def stream(self, question: Question, reply: Reply) -> None:
        sampling: dict[str, Any] = {
            "max_new_tokens": question.max_tokens,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "top_k": question.top_k or -1,
            "ignore_eos": question.ignore_end,
            "skip_special_tokens": False,
        }
        body = {"input_ids": list(question.prompt), "sampling_params": sampling, "stream": True}
        async for event in self.events("/generate", body):
            if error := event.get("error"):
                raise EngineFault("engine-error", str(error))
            take_generate_event(event, reply)


def take_generate_event(event: dict[str, Any], reply: Reply) -> None:
    """Add one event of SGLang's `/generate` to a reply.

    Its ids are those of the whole answer so far, or the new ones with `--stream-output`; the number of tokens
    in its meta information tells which.

    Raises:
        EngineFault: the event has no ids or no meta information.
    """
    meta, ids = event.get("meta_info"), event.get("output_ids")
    if not isinstance(meta, dict) or not isinstance(ids, list):
        raise EngineFault("engine-garbage", f"an event without output_ids or meta_info: {str(event)[:200]}")
    total = int(meta.get("completion_tokens", len(ids)))
    reply.take(ids[len(reply.ids) :] if len(ids) == total else ids)
    if reason := meta.get("finish_reason"):
        reply.finish = reason.get("type") if isinstance(reason, dict) else str(reason)
        reply.num_reported = total
        if "spec_verify_ct" in meta:
            reply.counts = _sglang_counts(meta, total)


def _sglang_counts(meta: dict[str, Any], num_tokens: int) -> EngineCounts:
    """Verify steps, and what they drafted and kept as far as this version says it (0.5.23 says both).

    A step emits what it keeps and one token more, and prefill emits the first token of an answer.
    """
    rounds = int(meta["spec_verify_ct"])
    kept = meta.get("spec_num_correct_drafts", meta.get("spec_accept_token_num"))
    drafted = meta.get("spec_num_proposed_drafts", meta.get("spec_draft_token_num"))
    return EngineCounts(
        rounds,
        int(drafted or 0),
        int(kept) if kept is not None else max(num_tokens - 1 - rounds, 0),
    )
