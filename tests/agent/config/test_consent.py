"""Code that only a file names is found in every place and refused."""

import pytest
from lssvwm.agent.config.composition import compose, from_checkpoint, to_dict
from lssvwm.agent.config.consent import check_consent, named_code
from lssvwm.agent.config.settings import CheckpointConfig, SavedRunConfig
from lssvwm.agent.errors import UserError

GYM = {"kind": "gym", "id": "CartPole-v1"}
PLACES = {
    "factory": {"env": {"kind": "gym", "factory": "os:system"}},
    "id": {"env": {"kind": "gym", "id": "os:Env-v0"}},
    "minigrid": {"env": {"kind": "minigrid", "id": "os:Env-v0"}},
    "wrapper": {"env": {"kind": "gym", "id": "GymV26Environment-v0"}},
    "unversioned": {"env": {"kind": "gym", "id": "GymV21Environment"}},
    "vary": {"env": GYM, "train": {"collect": {"vary": {"factory": ["os:system"]}}}},
    "stage": {"env": GYM, "stages": {"one": {"env": {"factory": "os:system"}}}},
    "stage_vary": {
        "env": GYM,
        "stages": {"one": {"train": {"collect": {"vary": {"id": ["os:Env-v0"]}}}}},
    },
    "dotted": {"env": GYM, "stages": {"one": {"env.factory": "os:system"}}},
}


@pytest.mark.parametrize("place", PLACES)
def test_from_checkpoint_refuses_code_of_a_file(place):
    with pytest.raises(UserError, match=r"run code .* if you trust .* add trust=true"):
        from_checkpoint(PLACES[place], [])
    trusting = from_checkpoint(PLACES[place], ["trust=true"], SavedRunConfig)
    assert trusting.env.kind in ("gym", "minigrid")


@pytest.mark.parametrize(
    "env",
    [
        {"kind": "tmaze"},
        GYM,
        GYM | {"kwargs": {"render_mode": "rgb_array"}},
        {"kind": "minigrid", "id": "MiniGrid-MemoryS7-v0"},
    ],
)
def test_from_checkpoint_accepts_built_in_environments(env):
    assert from_checkpoint({"env": env}, []).env.kind == env["kind"]


def test_from_checkpoint_shows_what_would_run():
    env = {"kind": "gym", "factory": "os:system", "kwargs": {"command": "rm \x1b[2J"}}
    with pytest.raises(UserError) as refused:
        from_checkpoint({"env": env}, [])
    assert "env.factory='os:system' with env.kwargs={'command': 'rm" in str(
        refused.value
    )
    assert "\x1b" not in str(refused.value)


def test_command_line_gives_consent_to_what_it_names():
    saved = PLACES["factory"]
    typed = ["env.factory=mine.py:make"]
    assert from_checkpoint(saved, typed).env.factory == "mine.py:make"
    assert from_checkpoint(saved, ["env.factory=os:system"]).env.factory == "os:system"
    assert from_checkpoint(saved, ["env=tmaze"]).env.kind == "tmaze"
    typed = ["env.id=mine:Env-v0", "env.factory=null"]
    assert from_checkpoint(saved, typed).env.id == "mine:Env-v0"
    with pytest.raises(UserError, match=r"vary\.factory='os:system'"):
        from_checkpoint(PLACES["vary"], ["env.factory=mine.py:make", "env.id=null"])


@pytest.mark.parametrize("where", ["trust", "checkpoint"])
def test_file_cannot_set_trust(where):
    saved = PLACES["factory"] | {where: True}
    with pytest.raises(UserError, match=f"does not fit.*unknown setting {where}"):
        from_checkpoint(saved, [], CheckpointConfig)
    saved = PLACES["factory"] | {"stages": {"one": {"trust": True}}}
    with pytest.raises(UserError, match="add trust=true"):
        from_checkpoint(saved, [], CheckpointConfig)


def test_trust_must_be_true_or_false():
    with pytest.raises(UserError, match=r"trust=maybe is wrong: .* true or false"):
        from_checkpoint(PLACES["factory"], ["trust=maybe"], SavedRunConfig)


def test_new_runs_need_no_consent():
    config = compose(["env=gym", "env.factory=mine.py:make"])
    assert named_code(to_dict(config)) == [("env.factory", "mine.py:make")]
    check_consent(to_dict(config), {"env.factory": "mine.py:make"})
