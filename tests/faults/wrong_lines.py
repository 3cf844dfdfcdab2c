"""List wrong command lines: generated from types and ranges of settings, and written by hand."""

from __future__ import annotations

from tests.wrong_values import every_setting, wrong_values

TRAIN = "train.steps=0 train.collect.frames=50 train.collect.envs=2 threads=1"
"""What keeps a line short that is accepted by mistake."""
MODEL = "checkpoint=tmaze tasks.count=2 threads=1"

WRITTEN = f"""
trian
train tmaze
train runs/tmaze
train planer=cem
train seeds=1
train lr=0.1
train epochs=3
train gpu=1
train batch_size=4
train --checkpoint=x
train --lr 3
train -v
train train.stepz=3
train trian.steps=3
train train=4
train train.lr=3
train =
train =3
train a=b=c
train train.steps
train train.steps=
train train.steps=1,2
train train.steps=[1
train train.steps={{a:1}}
train ~train.steps
train +train.more=1
train env.size=84
train env=gym
train env=gym env.id=Nope-v0
train env=gym env.id=ALE/Pong-v5
train env=gym env.id=nopackage:Env-v0
train env=gym env.id=CartPole-v1
train env=gym env.id=CartPole-v1 env.factory=json:loads
train env=gym env.factory=json
train env=gym env.factory=json:nope
train env=gym env.factory=json:loads
train env=gym env.factory=collections:OrderedDict
train env=gym env.factory=/no/such/file.py:make
train env=gym env.kwargs=3
train env=minigrid env.id=Nope
train env=tmaze env.size=64
train env.kind=maze
train env.length=3
train env.length=8.5
train env.length=null
train env.steps=-1
train model.width=3
train model.width=0
train model.patch=5000
train model.patch=1000 {TRAIN}
train model.mixer=gru
train model.mixer.kind=lstm
train model.mixer.tiles=[]
train model.mixer.tiles=[0]
train model.mixer.tiles=[7] {TRAIN}
train model.mixer.state=0
train model.attention_heads=3
train model.discount=2
train model.pixel_fraction=0
train model.pose=given env=minigrid {TRAIN}
train model=huge
train planner=mcts
train planner.reward=nan
train planner.kind=dfs
train planner.elites=1000
train planner.keep_elites=17
train planner.horizon=0
train planner.temperature=nan
train planner=mppi planner.temperature=0
train mpc.replan=100
train mpc.proposals=1000
train objective.reward=nan
train objective.discount=2
train objective.goal=1 train.evaluate_every=1 {TRAIN}
train objective.novelty=1 train.evaluate_every=1 {TRAIN}
train train.learning_rate=-1
train train.weight_decay=-1
train train.ema=2
train train.batch=100000000
train train.batch=65536 train.length=1000000 {TRAIN}
train train.length=1
train train.min_length=1
train train.precision=int8
train train.length_augmentation=often
train train.collect.mix={{}} {TRAIN}
train train.collect.mix={{random:-1}}
train train.collect.mix={{random:nan}}
train train.collect.mix={{random:0}} {TRAIN}
train train.collect.mix={{nope:1}} {TRAIN}
train train.collect.mix={{plan:1}} {TRAIN}
train train.collect.mix=random
train train.collect.vary={{nope:[1]}} {TRAIN}
train train.collect.vary={{length:3}}
train train.collect.vary={{length:[-1]}} {TRAIN}
train train.collect.envs=0
train train.init=nowhere {TRAIN}
train train.init=tmaze env=pointmaze {TRAIN}
train data=/no/such/folder {TRAIN}
train device=gpu {TRAIN}
train device=cuda:99 {TRAIN}
train backend=nope {TRAIN}
train backend=mamba_ssm {TRAIN}
train threads=100000
train threads=-1
train seed=-1
train seed=1e20
train stages={{a:3}}
train stages={{a:{{nope:1}}}} {TRAIN}
train stages={{a:{{until:2}}}} {TRAIN}
train stages={{../a:{{}}}} {TRAIN}
train experiment=none
train experiment=tmaze,recall
train record.mode=plan
train checkpoint=tmaze
train trust=true
train benchmark.seeds=[0]
train output=/proc/nope {TRAIN}
resume
resume x=1
resume nowhere
resume nowhere train.steps=9
resume nowhere model.width=32
resume . train.steps=9
evaluate
evaluate tmaze
evaluate checkpoint=
evaluate checkpoint=nowhere
evaluate checkpoint=tmaz
evaluate checkpoint=tmaze experiment=tmaze
evaluate checkpoint=tmaze model.width=16
evaluate checkpoint=tmaze model=small
evaluate checkpoint=tmaze env=pointmaze tasks.count=2
evaluate checkpoint=tmaze tasks.count=0
evaluate checkpoint=tmaze tasks.count=1e12
evaluate checkpoint=tmaze tasks.arms=[]
evaluate checkpoint=tmaze tasks.arms=retained
evaluate {MODEL} tasks.arms=[nope]
evaluate {MODEL} tasks.arms=[swapped]
evaluate {MODEL} tasks.arms=[prior]
evaluate {MODEL} objective.goal=1
evaluate {MODEL} objective.novelty=1
evaluate {MODEL} device=cuda:99
evaluate {MODEL} output=/proc/nope
evaluate checkpoint=tmaze tasks.workers=0
evaluate checkpoint=tmaze record.mode=plan
record
record checkpoint=tmaze mode=film
record checkpoint=tmaze record.episodes=0
record checkpoint=tmaze record.fps=1000
record checkpoint=tmaze record.scale=17
record checkpoint=tmaze record.plans=1
record {MODEL} record.episodes=1 record.context=1000 env.length=5
record {MODEL} record.episodes=1 env=pointmaze
collect checkpoint=nowhere
collect train.collect.mix={{plan:1}} train.collect.frames=50
collect train.collect.frames=-1
collect output=/proc/nope train.collect.frames=50
benchmark
benchmark all
benchmark planing
benchmark planning
benchmark planning checkpoint=nowhere
benchmark planning checkpoint=tmaze benchmark.sweep=3
benchmark planning checkpoint=tmaze benchmark.sweep={{env.length:3}}
benchmark planning checkpoint=tmaze benchmark.sweep={{env.length:[3]}}
benchmark planning checkpoint=tmaze benchmark.sweep={{a.b:[1]}}
benchmark planning checkpoint=tmaze benchmark.sweep={{model.width:[16]}}
benchmark planning checkpoint=tmaze benchmark.sweep={{train.steps:[1]}}
benchmark planning {MODEL} tasks.arms=[nope]
benchmark strategies benchmark.strategies=[nope] {TRAIN}
benchmark memory benchmark.models=[nope] {TRAIN}
benchmark recall benchmark.models=[nope] {TRAIN}
benchmark memory benchmark.seeds=[]
benchmark memory benchmark.seeds=[-1]
benchmark memory benchmark.contexts=[1]
benchmark seeds benchmark.conditions={{a:{{nope:1}}}} {TRAIN}
benchmark seeds benchmark.conditions=3
benchmark device device=cuda:99
doctor x
doctor device=cuda:99
doctor backend=nope
"""
"""Command lines that must fail, one a line."""


def written() -> list[list[str]]:
    """Return the lines that were written by hand."""
    return [line.split() for line in WRITTEN.strip().splitlines()]


def generated() -> list[list[str]]:
    """Return one line for each wrong value of each setting; `--show` keeps accepted ones short."""
    lines = []
    for setting in every_setting():
        section = setting.name.split(".")[0]
        command = {"record": ["record"], "benchmark": ["benchmark", "memory"]}
        given = command.get(section, ["train"])
        if section == "record":
            given = [*given, "checkpoint=tmaze"]
        kind = [setting.kind] if setting.kind else []
        for value in wrong_values(setting.schema):
            typed = f"{setting.name}={value}"
            lines.append([*given, *kind, typed, "--show"])
    return lines
