"""The help pages of the console script. Imports nothing heavy, so that they appear at once."""

from __future__ import annotations

import textwrap

from lssvwm.agent.config.presets import options, pretrained

WIDEST = 110
"""Characters of a line, at most."""

OVERVIEW = """\
lssvwm: agents that plan with a video world model which remembers.

usage: lssvwm COMMAND [key=value ...]

  train      collect frames, train a world model on them        lssvwm train experiment=tmaze
  resume     go on with a run that was stopped, or for longer   lssvwm resume runs/tmaze train.steps=800
  evaluate   planning success, with memory and without          lssvwm evaluate checkpoint=runs/tmaze
  record     videos: real beside imagined                       lssvwm record checkpoint=runs/tmaze mode=plan
  collect    collect frames only                                lssvwm collect experiment=tmaze
  benchmark  measure speed, and memory                          lssvwm benchmark envs
  doctor     versions, devices, backends of the scan            lssvwm doctor

Settings are written key=value, as many as you like: experiment=NAME chooses a tried set of them, env=NAME,
model=NAME, planner=NAME and train=NAME replace one group, env.length=32 changes one value. After a command,
--show prints the settings that would be used and stops; --help explains the command and its settings.

experiments:
{experiments}

pretrained: {pretrained}

more: lssvwm COMMAND --help, lssvwm --version
"""

COMMON = """
  seed=0                       of weights, batches, planning
  threads=0                    CPU threads; 0: all cores
  device=auto                  auto: the GPU if there is one
  backend=auto                 of the scan: chunked, mamba_ssm, fla; auto: the fastest that works
"""

PAGES = {
    "train": """\
usage: lssvwm train [experiment=NAME] [key=value ...]

Collects frames with scripted explorers and trains the world model on them. The run's folder gets config.yaml,
metrics.jsonl, tensorboard/, data/, checkpoints/ (to go on) and best/ (to evaluate, record, act). Ctrl-C
saves; `lssvwm resume FOLDER` goes on. A folder that holds a run already is never overwritten.

settings                       (with the defaults; an experiment may set others)
  output=null                  the run's folder; null: runs/NAME
  data=null                    folder that `collect` wrote; null: the run gathers its own frames
  train.init=null              begin with the weights of this run or pretrained model
  train.steps=400              optimisation steps
  train.batch=8                sequences in a batch
  train.length=96              frames in a sequence; what is to be remembered must lie within
  train.length_augmentation=random   their lengths: none, random, or adversarial (what is foreseen worst)
  train.burn_in=0              frames before them that are only observed
  train.activation_checkpointing=false   long sequences in less memory: blocks run again in the backward pass
  train.tbptt_length=0         frames that go through at once, memory carried on; 0: all
  train.frame_mask.prob=0.0    share of frames hidden (train.frame_mask.span)
  train.state_reset_prob=0.0   share of frames before which memory is erased
  train.actor_critic.walks=0   imagined walks from every sequence that train the policy and value heads
  train.compile=false          compile the blocks: a long start, faster steps on some machines
  train.precision=auto         bf16 matrix products where the hardware has them; or float32, bf16
  train.learning_rate=0.002
  train.save_every=100         steps between checkpoints
  train.evaluate_every=0       steps between evaluations on held-out tasks; 0: none
  train.collect.frames=60000   frames collected before training
  train.collect.more=10000     frames collected every train.collect.every steps
  train.collect.every=0        0: collect once
  train.collect.mix={{random: 1.0}}   shares of the explorers, and of the agent itself: plan, or policy
  train.collect.vary={{}}        several values for settings of the environment, e.g. {{length: [8, 16]}}
  model.width=64               size of the model, with model.tiles and model.state
  model.self_forcing_prob=0.0  fraction of frames remembered as predicted (model.self_forcing_span)
  model.normalize_frames=false where small things move before a background that never changes
  model.tiles=[1,3]            one layer for each entry: the side of its tiles, in tokens
{common}

environments (env=NAME):
{env}

models (model=NAME):
{model}

planners (planner=NAME):
{planner}

lengths of training (train=NAME):
{train}

experiments (experiment=NAME):
{experiment}

examples
  lssvwm train experiment=tmaze
  lssvwm train experiment=tmaze env.length=32 train.length=96 output=runs/long
  lssvwm train env=minigrid env.id=MiniGrid-FourRooms-v0 train=quick
""",
    "resume": """\
usage: lssvwm resume FOLDER [key=value ...]

Goes on with the run in FOLDER from its last checkpoint, exactly as if it had not stopped; with settings,
under them, e.g. for more steps. What was collected and trained is kept.

settings
  train.steps=400              train until this step
  train.save_every=100         steps between checkpoints
{common}

examples
  lssvwm resume runs/tmaze
  lssvwm resume runs/tmaze train.steps=800
""",
    "evaluate": """\
usage: lssvwm evaluate checkpoint=NAME_OR_FOLDER [key=value ...]

Plays the same held-out tasks with several arms: the agent with its memory (retained), without it (erased),
with another task's (swapped), with the last few frames only (window), the policy head without planning
(prior), and scripted floors and ceilings. Prints tables; writes evaluation.json, .md, a CSV file and a plot.

settings                       (those of the checkpoint, where it has others)
  checkpoint=null              the folder of a run, or a pretrained model:
                               {pretrained}
  output=null                  folder for the results; null: runs/NAME/evaluation
  tasks.seed=0                 which held-out tasks
  tasks.count=300              how many
  tasks.window=8               frames that the arm `window` observes
  tasks.arms=[retained,erased,swapped,window,policy,random,noop,seek,wall,oracle]
                               also: short (never more than the last frames), and the explorers forage, look
  planner.horizon=16           steps imagined ahead
  planner.candidates=128       futures imagined in every iteration
  planner.iterations=3
  planner.proposals=32         candidates drawn from the policy head
  planner.replan=4             actions executed of every plan
  planner.discount=0.97        of rewards; planner.bootstrap=0.5 of the value at the end
  planner.reward=1.0           weights of what a plan is for: rewards, steps to a goal image, what is new
  planner.goal=0.0
  planner.novelty=0.0
  planner.budget=0.0           seconds for a plan; 0: no limit
  planner.settled=0.0          stop where the elites' scores lie so close; 0: never
  planner.repeat=1             times that each action is taken
  planner.samples=1            futures of every candidate, in planner.denoise=1 steps a frame, their
  planner.caution=0.0          spread counting so much against it
  env.length=16                the environment may be made harder than in training
{common}

planners (planner=NAME; what is common to both keeps its value):
{planner}

examples
  lssvwm evaluate checkpoint=runs/tmaze
  lssvwm evaluate checkpoint=runs/tmaze env.length=64 output=runs/tmaze/length64
  lssvwm evaluate checkpoint=runs/tmaze planner=mppi 'tasks.arms=[retained,erased]' tasks.count=100
""",
    "record": """\
usage: lssvwm record checkpoint=NAME_OR_FOLDER [mode=open_loop|plan|branches] [key=value ...]

Writes mp4 videos of held-out tasks: real beside imagined beside the error, with actions, rewards and PSNR,
and the same as data in JSON. open_loop: after the context, imagination follows the real actions. plan: what
the planner imagined when it decided, beside what then happened. branches: several plans imagined from one
memory, each beside what happens when it is carried out in a copy of the environment.

settings                       (those of the checkpoint, where it has others)
  checkpoint=null              the folder of a run, or a pretrained model:
                               {pretrained}
  output=null                  folder for the videos; null: runs/NAME/video
  record.mode=open_loop        mode= is short for it
  record.episodes=2            videos
  record.context=0             frames observed first; 0: the environment's context, or half
  record.horizon=32            frames imagined in open loop
  record.plans=3               in mode branches
  record.fps=6
  record.gif=false             a GIF as well
  tasks.seed=0                 which held-out tasks
{common}

examples
  lssvwm record checkpoint=runs/tmaze
  lssvwm record checkpoint=runs/tmaze mode=plan record.episodes=4 output=videos
""",
    "collect": """\
usage: lssvwm collect [experiment=NAME] [key=value ...]

Lets explorers walk and keeps whole episodes on disk; an existing folder grows. A run whose folder already has
data/ trains on that instead of collecting, so output=runs/NAME/data prepares the run runs/NAME.

settings                       (with the defaults; an experiment may set others)
  output=null                  folder for the frames; null: data/NAME
  train.collect.frames=60000   frames to add
  checkpoint=null              whose agent walks the shares `plan` and `prior` of the mix
  train.collect.mix={{random: 1.0}}   shares of the explorers; each environment has its own
  train.collect.vary={{}}        several values for settings of the environment
  train.collect.envs=32        environments stepped together
  train.collect.keep=1000000   frames kept on disk; the oldest go first
{common}

environments (env=NAME):
{env}

experiments (experiment=NAME):
{experiment}

examples
  lssvwm collect experiment=tmaze output=runs/tmaze/data
  lssvwm collect env=recall 'train.collect.mix={{tour: 0.5, cells: 0.5}}'
  lssvwm collect checkpoint=return9 'train.collect.mix={{plan: 1.0}}' train.collect.frames=9000
""",
    "benchmark": """\
usage: lssvwm benchmark envs|speed|fork|decide|planners|planning|memory|recall|strategies [key=value ...]

Measures, prints tables and writes them as JSON. planning: success of a checkpoint, all arms on the same
tasks, with every combination of the values in benchmark.sweep (settings of env, planner or tasks, or
checkpoint), with paired differences, by goal distance and by age of the evidence; takes the settings of
`evaluate`.
envs: frames per second of the four mazes, the engine alone and through TorchRL, random actions, one
thread.
speed: seconds per frame of observing, imagining and training, ours beside window attention, full
attention and a GRU, against the frames in memory (64 to 8192) or in a training sequence (128 to 2048),
new weights, random frames; takes some minutes.
fork: time and memory of imagining 1024 futures of one memory, against 1024 copies of it.
decide: time and memory of a plan, by our CEM and by TorchRL's in the same world model, and with the
beginnings of candidates shared or not. planners: our planners beside those of TorchRL and, where they are
installed, pytorch-mppi, pytorch-icem and stable-worldmodel, on problems whose model is exact.
memory: trains every model from every seed on the same frames of mazes (experiment=recollect) and asks what
it remembers: walking the exact way back (retrieval) and on (reasoning) after long contexts, in imagination.
recall: trains the models of `memory` on, to choose between balls whose colours they saw before the dark, and
measures planning success by dark frames. strategies: trains with one training strategy changed at a time on
short T-mazes (experiment=strategies) and measures planning success in long ones.
These three take hours. They and planning go on where they were stopped when they are run again. Other models,
strategies and seeds add to what is there.

settings
  output=null                  folder for the results; null: runs/benchmark, planning: a folder in it
  benchmark.sweep={{}}           e.g. {{env.delay: [32, 128], planner: [cem, mppi]}}, of planning
  benchmark.processes=1        at once, of planning
  benchmark.models=[small,window,attention,attention_odometer,gru,mamba2,mamba2_local,tile1,untiled,paper]
  benchmark.seeds=[0,1,2]      of training
  benchmark.contexts=[128,1024]   frames observed
  benchmark.horizon=64         frames imagined
  benchmark.walks=48           walks for each test and context
  benchmark.delays=[16,64,256]    dark frames, of recall
  benchmark.strategies         a list of names; all are in agent/contest.py
  benchmark.lengths=[8,16,24,32,48,64]   of the corridor, of strategies
{common}

examples
  lssvwm benchmark envs
  lssvwm benchmark speed threads=1
  lssvwm benchmark planning checkpoint=recall9 'benchmark.sweep={{env.delay: [32, 512]}}' tasks.count=100
  lssvwm benchmark memory 'benchmark.models=[small,window]' 'benchmark.seeds=[0]'
""",
    "doctor": """\
usage: lssvwm doctor [device=NAME] [backend=NAME]

Prints the versions of what matters, the devices, and every backend of the scan: how far its numbers are from
the plain recurrence on this device, or why it cannot be used. Ends with what a run here would use.

settings
{common}

examples
  lssvwm doctor
  lssvwm doctor device=cuda backend=mamba_ssm
""",
}


def overview() -> str:
    """The page of `lssvwm --help`."""
    return OVERVIEW.format(experiments=_listing("experiment"), pretrained=_pretrained())


def page(command: str) -> str:
    """The page of `lssvwm COMMAND --help`; raises KeyError for an unknown command."""
    groups = {
        group: _listing(group)
        for group in ("env", "model", "planner", "train", "experiment")
    }
    return PAGES[command].format(
        **groups, common=COMMON.strip("\n"), pretrained=_pretrained(31)
    )


def _listing(group: str) -> str:
    return "\n".join(f"  {name:<10} {text}" for name, text in options(group).items())


def _pretrained(column: int = 12) -> str:
    """The names, on lines that begin at a column of the page."""
    lines = textwrap.wrap(", ".join(pretrained()) or "none yet", WIDEST - column)
    return ("\n" + " " * column).join(lines)
