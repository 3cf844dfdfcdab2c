"""Build the environments and policies that collect frames, from settings, in any process.

    factory = SourceFactory(config.env, config.train.collect)
    for source in factory.sources(frames=10_000, own=False):
        env = factory.make_env(source.variant)
        policy = factory.make_policy(env, source.policy, seed)

Scripted explorers read the environment that they act in, so both are built in the same process.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.settings import CollectConfig, Config, EnvConfig
from lssvwm.agent.config.validation import replaced
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent
from lssvwm.agent.policies import GuidedPolicy, ScriptedPolicy
from lssvwm.envs.base import BatchedEnv, Mixture
from lssvwm.worldmodel import WorldModel
from tensordict.nn import TensorDictModuleBase

OWN = {"plan": True, "policy": False}
"""The agent's own policies in `train.collect.mix`, and whether each plans."""
EXPLORERS = "scripted"
"""All explorers of the mix together: they take turns within one environment."""

MakeAgent = Callable[[BatchedEnv, int], Agent]
"""Builds the agent that collects in an environment, with a seed."""


def agent_factory(config: Config, model: WorldModel) -> MakeAgent:
    """Return a function that builds the agent of a configuration with another seed."""

    def make(env: BatchedEnv, seed: int) -> Agent:
        return build_agent(dataclasses.replace(config, seed=seed), model, env)

    return make


@dataclass(frozen=True)
class Source:
    """Name one environment and the policy that collects in it.

    variant: number of the environment's settings among `SourceFactory.variants`
    policy: `plan`, `policy`, or `EXPLORERS`
    frames: to collect at least, 1 or more
    """

    variant: int
    policy: str
    frames: int


@dataclass(frozen=True)
class SourceFactory:
    """Build environments and policies; it holds settings only, so that processes can send it.

    env: settings of the environment, which `collect.vary` varies
    """

    env: EnvConfig
    collect: CollectConfig

    @property
    def variants(self) -> list[EnvConfig]:
        """Return the settings of all environments that frames are collected in."""
        return variants(self.env, self.collect.vary)

    @property
    def own(self) -> list[str]:
        """Return the agent's own policies in the mix."""
        return [name for name in OWN if self.collect.mix.get(name, 0) > 0]

    @property
    def explorers(self) -> dict[str, float]:
        """Return the scripted explorers of the mix and their fractions."""
        return {
            name: fraction
            for name, fraction in self.collect.mix.items()
            if fraction > 0 and name not in OWN
        }

    def make_env(self, variant: int) -> BatchedEnv:
        """Build the environments of a variant, `collect.envs` of them."""
        return build_env(self.variants[variant], self.collect.envs)

    def make_policy(
        self,
        env: BatchedEnv,
        name: str,
        seed: int,
        make_agent: MakeAgent | None = None,
    ) -> TensorDictModuleBase:
        """Build the policy of a source for its environment.

        make_agent: builds the agent for `plan` and `policy`, which need it
        """
        if name == EXPLORERS:
            return ScriptedPolicy(Mixture(env, self.explorers, seed))
        assert make_agent is not None
        return GuidedPolicy(make_agent(env, seed), env, OWN[name], seed)

    def sources(self, frames: int, own: bool) -> list[Source]:
        """Share frames among policies, by their fractions, and equally among variants.

        own: whether there is an agent; without one, the explorers get its fraction
        """
        if frames == 0:
            return []
        fractions = self._fractions(own)
        total = sum(fractions.values())
        count = len(self.variants)
        return [
            Source(variant, name, max(1, int(frames / count * fraction / total)))
            for variant in range(count)
            for name, fraction in fractions.items()
        ]

    def _fractions(self, own: bool) -> dict[str, float]:
        """Return the fractions of the agent's policies and of all explorers.

        Raises UserError if no policy is left without an agent.
        """
        explorers = self.explorers
        scripted = {EXPLORERS: sum(explorers.values())} if explorers else {}
        if not own and not scripted:
            raise UserError(
                f"train.collect.mix: {', '.join(self.own)} need a trained agent; "
                f"add an explorer, or checkpoint="
            )
        agents = {name: self.collect.mix[name] for name in self.own}
        return agents | scripted if own else scripted

    def provenance(
        self, source: Source, seed: int, weights: str | None
    ) -> dict[str, Any]:
        """Describe how frames are collected, as shards store it.

        weights: hash of the agent's latest weights; None: no agent, or weights that no file holds
        """
        mix = self.explorers if source.policy == EXPLORERS else {source.policy: 1.0}
        settings = dataclasses.asdict(self.variants[source.variant])
        if settings.get("factory"):
            settings["factory"] = Path(settings["factory"]).name
        return {"settings": settings, "policy": mix, "seed": seed, "weights": weights}


def variants(env: EnvConfig, vary: Mapping[str, tuple[Any, ...]]) -> list[EnvConfig]:
    """Return one environment's settings for each combination of the values in `vary`.

    Raises UserError for an unknown setting of the environment or a wrong value.
    """
    names = [field.name for field in dataclasses.fields(env)]
    names.remove("kind")
    for name, values in vary.items():
        if not values:
            raise UserError(f"train.collect.vary: {name} has no values")
        if name not in names:
            raise UserError(
                f"train.collect.vary: env={env.kind} has no setting {name!r}; "
                f"it has {names}"
            )
    found = []
    for values in itertools.product(*vary.values()):
        changes = dict(zip(vary, values))
        found.append(replaced(env, "train.collect.vary", changes))
    return found
