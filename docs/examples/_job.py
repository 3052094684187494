"""A training job: one optimizer after the other, stopped and resumed at any moment.

Knows nothing of the framework that trains, so that every framework's example behaves alike.
"""

import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from _report import LiveReport, Run, draw, table, tell_apart, whole_file, write_json
from _settings import Settings, make_parser, settings_from
from _text import Corpus, TextError, load
from _weights import WeightsError, fingerprint
from rich.console import Console

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
VALIDATIONS = 10
VALIDATION_WINDOWS = 64
# What shells report for a program that Ctrl-C ended.
INTERRUPTED = 130

# The best of those tried on the default job; of DCT-AdamW AdamW's own, to the noise of runs as good as twice that.
RATES = {"adamw": 7e-4, "dct-adamw": 7e-4, "galore": 2.8e-3, "muon": 0.03, "trion": 0.04}


class UsageError(Exception):
    """The command line asks for something that cannot be done; the message is one line."""


@dataclass(frozen=True)
class Recipe:
    """How an optimizer is called, how fast it learns unless `--lr` says otherwise, and how it is built."""

    label: str
    lr: float
    build: Callable[..., Any]
    low_rank: bool = False
    """Whether `--rank` and `--option` are for it."""


class Training(Protocol):
    """One optimizer at work: everything that changes from step to step, and can be saved."""

    def step(self, windows: Any) -> tuple[float, float]:
        """Train on a batch; the loss, and the seconds spent in the optimizer alone."""

    def validate(self, windows: Any, batch: int) -> float:
        """Mean loss over the held-out windows."""

    def state_bytes(self) -> int:
        """Bytes of every array in the optimizer's state."""

    def parameters(self) -> int:
        """Number of the model's weights."""

    def state_dict(self) -> Any:
        """All of it."""

    def load_state_dict(self, state: Any) -> None:
        """Go back to where `state_dict` was called."""


class Alone:
    """The one process of a job that no others take part in."""

    ways: tuple[str, ...] = ()
    leads = True

    def start(self, way: str | None) -> None:
        """Join the others."""

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it."""
        return wish


@dataclass(frozen=True)
class Framework:
    """What trains, and how what it trains is saved."""

    about: Callable[[], str]
    """Its name and what it runs on."""
    recipes: Mapping[str, Recipe]
    training: Callable[[str, float, Settings], Training]
    write: Callable[[Mapping[str, Any], Path], None]
    """Writes `settings`, `runs` and `training` to a file; an `OSError` if it cannot."""
    read: Callable[[Path], Mapping[str, Any]]
    read_errors: tuple[type[Exception], ...]
    """What `read` raises for a file that is not one of `write`, beside Python's own."""
    picture: str
    processes: Any = field(default_factory=Alone)
    """Those that share the work, `Alone` or what behaves like it."""


def rate_factor(step: int, *, steps: int) -> float:
    """Linear warm-up over a twentieth of the run, then a cosine down to a tenth of the peak."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0))


class Interruption:
    """Turns the first Ctrl-C into a wish to stop, so that no step is left half done."""

    def __init__(self) -> None:
        self.wished = False

    def __enter__(self) -> Self:
        self.previous = signal.signal(signal.SIGINT, self._wish)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _wish(self, _signal: int, _frame: FrameType | None) -> None:
        self.wished = True
        # A second Ctrl-C does not wait for the step to end.
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Job:
    """All the optimizers asked for, one after the other."""

    def __init__(self, framework: Framework, settings: Settings, corpus: Corpus) -> None:
        self.framework, self.settings, self.corpus = framework, settings, corpus
        self.runs = [
            Run(name, framework.recipes[name].label, lr)
            for name, lr in zip(settings.optimizers, settings.rates, strict=True)
        ]
        tell_apart(self.runs)
        self.resumed: Any = None
        # Wrong options show now, not when the optimizers before have done their work.
        for run in self.runs:
            training = framework.training(run.optimizer, run.learning_rate, settings)
            self.parameters = training.parameters()
        self.decisive = {**settings.decisive(), "--text": corpus.fingerprint}
        if settings.weights:
            self.decisive["--weights"] = fingerprint(settings.weights)
        if settings.checkpoint and settings.checkpoint.exists():
            done = self._restore(settings.checkpoint)
            self.runs[: len(done)] = done

    def work(self, live: LiveReport, interruption: Interruption) -> bool:
        """Train until all is done or an interruption is wished; whether all is done."""
        settings = self.settings
        started = [run for run in self.runs if run.training]
        for run in self.runs[max(0, len(started) - 1) :]:
            training = self.framework.training(run.optimizer, run.learning_rate, settings)
            if self.resumed is not None:
                training.load_state_dict(self.resumed)
                self.resumed = None
            self._work_on(run, training, live, interruption)
            if run.step < settings.steps:
                break
        return all(run.step == settings.steps for run in self.runs)

    def _work_on(
        self, run: Run, training: Training, live: LiveReport, interruption: Interruption
    ) -> None:
        settings = self.settings
        window = settings.length + 1
        held_out = self.corpus.validation(count=VALIDATION_WINDOWS, window=window)
        validate_every = math.ceil(settings.steps / VALIDATIONS)
        clock = time.perf_counter()
        # All processes stop at the same step.
        while run.step < settings.steps and not self.framework.processes.any(interruption.wished):
            windows = self.corpus.batch(
                run.step, seed=settings.seed, count=settings.batch, window=window
            )
            loss, seconds = training.step(windows)
            if not math.isfinite(loss):
                sys.exit(
                    f"{run.label}: the loss is {loss} at step {run.step + 1}; try an --lr below "
                    f"{run.learning_rate:g}"
                )
            run.training.append(loss)
            run.optimizer_seconds.append(seconds)
            if run.step % validate_every == 0 or run.step == settings.steps:
                run.validation.append((run.step, training.validate(held_out, settings.batch)))
                run.state_bytes = training.state_bytes()
            now = time.perf_counter()
            run.seconds, clock = run.seconds + now - clock, now
            live.show(run)
            if settings.checkpoint and run.step % settings.checkpoint_every == 0:
                self._save(settings.checkpoint, training)
        if settings.checkpoint and run.training:
            self._save(settings.checkpoint, training)

    def _save(self, path: Path, training: Training) -> None:
        """Write a checkpoint aside, then give it its name: the file there is whole at any moment."""
        content = {
            "settings": self.decisive,
            "runs": [asdict(run) for run in self.runs if run.training],
            "training": training.state_dict(),
        }
        if not self.framework.processes.leads:
            return
        try:
            with whole_file(path) as part:
                self.framework.write(content, part)
        except OSError as error:
            sys.exit(f"could not write the checkpoint {path}: {error}")

    def _restore(self, path: Path) -> list[Run]:
        """Read the runs so far and the state of the last of them; refuse another configuration."""
        damage = (RuntimeError, EOFError, LookupError, TypeError, ValueError)
        try:
            content = self.framework.read(path)
            saved, runs = content["settings"], [Run(**run) for run in content["runs"]]
            self.resumed = content["training"]
        except (*damage, *self.framework.read_errors) as error:
            raise UsageError(
                f"argument --checkpoint: must be a file that this program saved, got {path} "
                f"({type(error).__name__})"
            ) from None
        for name in self.decisive | saved:
            if saved.get(name) != self.decisive.get(name):
                raise UsageError(
                    f"argument --checkpoint: {path} belongs to a run with {name} {saved.get(name)}, "
                    f"this one has {self.decisive.get(name)}; give it the same or choose another file"
                )
        return runs


def check_options(settings: Settings, recipes: Mapping[str, Recipe]) -> None:
    """Refuse options that nobody would read, and those that have an argument of their own."""
    if settings.options and not any(recipes[name].low_rank for name in settings.optimizers):
        raise UsageError(
            "argument --option: needs a low-rank optimizer in --optimizer, got "
            + ", ".join(settings.options)
        )
    for option in settings.options.keys() & {"params", "lr", "learning_rate", "rank"}:
        raise UsageError(f"argument --option: must not set what has its own argument, got {option}")


def caption(job: Job) -> str:
    """One line on what was trained."""
    settings = job.settings
    return (
        f"{job.parameters / 1e6:.1f}M parameters, rank {settings.rank:g}, {settings.steps} steps of "
        f"{settings.batch} x {settings.length} bytes, seed {settings.seed}, {job.framework.about()}"
    )


def tell_how_to_go_on(job: Job, tell: Callable[[str], None]) -> None:
    """Say where the run stopped and how it goes on."""
    at_work = next((run for run in reversed(job.runs) if run.training), None)
    if at_work is None:
        tell("Stopped before the first step.")
        return
    tell(f"Stopped after step {at_work.step} of {job.settings.steps} of {at_work.label}.")
    if job.settings.checkpoint:
        again = shlex.join([Path(sys.executable).name, *sys.argv])
        tell(f"Saved to {job.settings.checkpoint}. The same command goes on:\n  {again}")
    else:
        tell("Nothing was saved: a run with --checkpoint PATH can go on where it stopped.")


def report(job: Job, tell: Callable[[str], None]) -> None:
    """Write the figures and the picture of a run that is done; the figures first, which the picture is made of."""
    settings, about = job.settings, caption(job)
    tell(about)
    try:
        if settings.json:
            write_json(settings.json, job.runs, job.decisive | {"text": job.corpus.source})
        draw(settings.output, job.runs, about)
    except OSError as error:
        sys.exit(f"could not write {error.filename or settings.output}: {error.strerror or error}")
    tell(f"Loss curves: {settings.output}")


def _run(framework: Framework, arguments: list[str] | None) -> int:
    recipes = framework.recipes
    description = "Train a small language model and compare optimizers."
    processes = framework.processes
    parser = make_parser(description, recipes, framework.picture, processes.ways)
    settings = settings_from(
        parser, arguments, {name: recipe.lr for name, recipe in recipes.items()}
    )
    try:
        processes.start(settings.parallel)
        check_options(settings, recipes)
        corpus = load(settings.text)
        corpus.require(settings.length + 1)
        job = Job(framework, settings, corpus)
    except TextError as error:
        parser.error(f"argument --text: {error}")
    except WeightsError as error:
        parser.error(f"argument --weights: {error}")
    except UsageError as error:
        parser.error(str(error))
    console = Console(quiet=not processes.leads)
    tell = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    sizes = [len(part) / 1e6 for part in (corpus.training, corpus.held_out)]
    tell(f"{sizes[0]:.2f} MB to train on, {sizes[1]:.2f} MB held out, from {corpus.source}")
    tokens_per_step = settings.batch * settings.length
    live = LiveReport(
        job.runs, steps=settings.steps, tokens_per_step=tokens_per_step, console=console
    )
    with Interruption() as interruption, live:
        done = job.work(live, interruption)
    finished = [run for run in job.runs if run.step == settings.steps]
    if finished:
        console.print(table(finished))
    if not done:
        tell_how_to_go_on(job, tell)
        return INTERRUPTED
    if processes.leads:
        report(job, tell)
    return 0


def main(framework: Framework, arguments: list[str] | None = None) -> int:
    """Run the job of a command line; the exit status."""
    try:
        return _run(framework, arguments)
    except KeyboardInterrupt:
        # Before training, or a second one that would not wait for the step to end.
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
