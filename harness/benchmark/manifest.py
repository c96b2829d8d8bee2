"""The manifest of a run: what will be measured and where, and the id that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.benchmark.plan import make_cell
from harness.benchmark.session import Session
from harness.decoding.sampling import DecodingParams
from harness.store import identity
from harness.store.records import RunManifest
from harness.store.run_store import ResultStore
from harness.system import naming, provenance
from harness.system.secrets import redact
from harness.target.chat_template import NOW, template_hash


@dataclass(frozen=True, kw_only=True)
class ManifestMaker:
    """Makes the manifest of the run with `params`."""

    session: Session
    params: DecodingParams
    prompts: Mapping[str, Sequence[int]]
    """The first prompt of each conversation, token ids by the conversation's id."""
    scenario: Mapping[str, Any]
    """What the scenario makes of the target; see `Scenario.card`."""

    def make(self, store: ResultStore) -> RunManifest:
        """The manifest; with `replicate=next`, of the first replicate that `store` does not hold finished."""
        plan, model = self.session.plan, self.session.model
        device = plan.engine.device_facts(plan.target)
        cell, asked, cards = make_cell(plan, self.params), plan.run_config(self.params), self.session.cards()
        revision = {name: model.card.get(name) for name in ("source", "revision", "fingerprint")}

        def run_id(replicate: int) -> str:
            # Other prompts in the same file or another head in the same folder make another measurement.
            config = {**asked, "cards": cards, "prompts": self._prompt_set, "weights": revision}
            return identity.run_id(cell, identity.identity(config, replicate, device))

        replicate = store.next_replicate(run_id) if plan.replicate == "next" else plan.replicate
        return RunManifest(
            run_id=run_id(replicate),
            cell=cell,
            arms={
                name: {
                    **plan.config["methods"][name],
                    "scope": method.knowledge,
                    **({"card": cards[name]} if name in cards else {}),
                    **({"contaminated": count} if (count := self.session.contaminated.get(name)) else {}),
                }
                for name, method in plan.arms.items()
            },
            rungs=[player.name for player in plan.players(self.params) if player.kind == "rung"],
            config=redact(asked),
            overrides=redact(plan.overrides),
            target=model.card,
            prompts=self._prompt_set,
            provenance={
                "device": device,
                "git": provenance.git_state(),
                "packages": provenance.packages(),
                "source_hash": provenance.source_hash(),
                "template_time": NOW.isoformat(),
                **({"cost_table": table.made} if (table := self.session.cost_table) else {}),
            },
            replicate=replicate,
            created=naming.now(),
        )

    @cached_property
    def _prompt_set(self) -> dict[str, Any]:
        """What the target is asked, and the tokens at which it stops."""
        session = self.session
        return {
            "num_conversations": len(self.prompts),
            "hash": hashlib.sha256(json.dumps(list(self.prompts.items())).encode()).hexdigest()[:16],
            "template_hash": template_hash(session.model.tokenizer, session.plan.target.chat),
            "end_token_ids": sorted(session.model.end_token_ids),
            "task": session.plan.task.card(),
            **({"scenario": dict(self.scenario)} if self.scenario else {}),
        }
