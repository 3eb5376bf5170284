"""Optuna: what is tried next, what each trial gave, which one is hopeless; all of it in one database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploycompress.contracts import MetricInfo
from deploycompress.errors import ConfigError
from deploycompress.sweep import axes
from deploycompress.sweep.axes import Axis, Choice, Combination
from deploycompress.sweep.plan import Sweep

RECORD, OWNER, SPENT, DIGEST, RECOVERY = "record", "owner", "spent_s", "digest", "recovery"
LEAST_FOR_IMPORTANCE = 4  # finished trials; of fewer a forest tells nothing
LEAST_FOR_MEDIAN = 4


@dataclass(frozen=True)
class Trial:
    """One point of the search: its number in the study, and the values of the base's paths."""

    number: int
    values: Combination


class Study:
    """One sweep's trials in Optuna's storage."""

    def __init__(self, sweep: Sweep, storage: Any, owner: str, workers: int) -> None:
        import optuna

        self.sweep, self.owner = sweep, owner
        self._optuna, self._storage = optuna, storage
        directions = [objective.direction.replace("ise", "ize") for objective in sweep.objectives]
        self._study = optuna.create_study(
            storage=storage, study_name=sweep.config.name, directions=directions, load_if_exists=True
        )
        known = self._study.user_attrs.get(DIGEST)
        if known not in (None, sweep.digest):
            raise ConfigError(
                f"{sweep.storage_place}: the study {sweep.config.name!r} is of another sweep: its base pipeline, search, "
                "matrix or objectives differ, so that its trials cannot be compared; give this sweep another name or "
                "another --out, or undo the change"
            )
        self._study.set_user_attr(DIGEST, sweep.digest)
        self._study.sampler = self._sampler(workers)
        self._recovery: Any = None  # judges intermediate values, which Optuna does for one objective only
        for values in sweep.matrix:
            self._study.enqueue_trial(_params(sweep.axes, values), skip_if_exists=True)

    # ------------------------------------------------------------ what is tried

    def unfinished(self) -> list[Trial]:
        """Trials of this sweep that were under way when it ended."""
        running = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.RUNNING])
        return [self._trial(t) for t in running if t.user_attrs.get(OWNER) == self.owner]

    def ask(self) -> Trial | None:
        """The next one; None when every combination was tried, or what is asked for was tried too often already."""
        trials = self._study.get_trials(deepcopy=False)
        waiting = any(t.state.name == "WAITING" for t in trials)
        seen = {_key(self._values(t.params)) for t in trials if t.params and t.state.name != "WAITING"}
        if self.sweep.matrix:
            return self._asked() if waiting else None
        every = axes.size(self.sweep.axes)
        if every is not None and len(seen) >= every:
            return None
        for _ in range(100):
            trial = self._asked()
            if _key(trial.values) not in seen:
                return trial
            # The same again gives the same again: its figures are known, and it costs no part of the budget.
            self._repeat(trial, trials)
        return None

    def count(self) -> int:
        """Trials that were begun, by whomever, and are no repetitions."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(t.state.name != "WAITING" and "same_as" not in t.user_attrs for t in trials)

    def _asked(self) -> Trial:
        trial = self._study.ask({axis.path: self._distribution(axis) for axis in self.sweep.axes})
        trial.set_user_attr(OWNER, self.owner)
        return self._trial(trial)

    def _repeat(self, trial: Trial, trials: Sequence[Any]) -> None:
        key = _key(trial.values)
        first = next(t for t in trials if t.params and _key(self._values(t.params)) == key)
        own = self._of(trial.number)
        own.set_user_attr("same_as", first.number)
        states = self._optuna.trial.TrialState
        done = first.state == states.COMPLETE
        self._study.tell(own, first.values if done else None, state=states.COMPLETE if done else states.FAIL)

    # ------------------------------------------------------------ what came of it

    def complete(self, trial: Trial, record: Mapping[str, Any], values: Sequence[float]) -> None:
        self._end(trial, record, "COMPLETE", values)

    def failed(self, trial: Trial, record: Mapping[str, Any]) -> None:
        self._end(trial, record, "FAIL", None)

    def pruned(self, trial: Trial, record: Mapping[str, Any]) -> None:
        self._end(trial, record, "PRUNED", None)

    def records(self) -> list[dict[str, Any]]:
        """What was noted of every ended trial, in order, also of those that another machine made."""
        trials = self._study.get_trials(deepcopy=False)
        return [json.loads(t.user_attrs[RECORD]) for t in trials if RECORD in t.user_attrs]

    def hopeless(self, trial: Trial, primary: MetricInfo, seen: Sequence[tuple[int, float]]) -> bool:
        """Whether a trial with these values of ``primary``, by epoch, is to be ended."""
        own = self._recovering(trial, primary)
        told = own.study._storage.get_trial(own._trial_id).intermediate_values
        for epoch, value in seen:
            if epoch not in told:
                own.report(value, epoch)
        return bool(seen) and bool(own.should_prune())

    def importances(self) -> dict[str, dict[str, float]]:
        """By objective, the share of its variation that each path explains (fANOVA); empty with too few trials."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        trials = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.COMPLETE])
        varied = len(self.sweep.axes) > 0 and len({_key(self._values(t.params)) for t in trials}) > 1
        if len(trials) < LEAST_FOR_IMPORTANCE or not varied:
            return {}
        found: dict[str, dict[str, float]] = {}
        for index, objective in enumerate(self.sweep.objectives):
            if len({t.values[index] for t in trials}) < 2:
                continue
            found[objective.name] = get_param_importances(
                self._study,
                evaluator=FanovaImportanceEvaluator(seed=0),
                target=lambda t, index=index: t.values[index],
            )
        return found

    # ------------------------------------------------------------ time

    @property
    def spent_s(self) -> float:
        """Of this sweep's earlier processes."""
        return float(self._study.user_attrs.get(f"{SPENT}:{self.owner}", 0.0))

    def spend(self, seconds: float) -> None:
        self._study.set_user_attr(f"{SPENT}:{self.owner}", seconds)

    # ------------------------------------------------------------ Optuna's side

    def _sampler(self, workers: int) -> Any:
        samplers, method = self._optuna.samplers, self.sweep.config.method
        # A sampler that goes on after a kill must not draw the same again.
        seed = (self.sweep.config.seed + len(self._study.get_trials(deepcopy=False))) % 2**32
        if method == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        if method == "tpe" and not self.sweep.matrix:
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=workers > 1)
        return samplers.RandomSampler(seed=seed)

    def _recovering(self, trial: Trial, primary: MetricInfo) -> Any:
        """The trial's shadow in a study of its own, whose one objective is the metric during recovery."""
        if self._recovery is None:
            direction = "maximize" if primary.higher_is_better else "minimize"
            self._recovery = self._optuna.create_study(
                storage=self._storage,
                study_name=f"{self.sweep.config.name}/{RECOVERY}",
                direction=direction,
                load_if_exists=True,
            )
            self._recovery.pruner = self._pruner()
        own = self._of(trial.number)
        if RECOVERY not in own.user_attrs:
            own.set_user_attr(RECOVERY, self._recovery.ask()._trial_id)
        return self._optuna.Trial(self._recovery, own.user_attrs[RECOVERY])

    def _pruner(self) -> Any:
        rule = self.sweep.pruning
        assert rule is not None
        after = int(rule.after.value)
        if rule.min is None and rule.max is None:
            return self._optuna.pruners.MedianPruner(LEAST_FOR_MEDIAN, n_warmup_steps=after)
        return self._optuna.pruners.ThresholdPruner(
            lower=None if rule.min is None else rule.min.value,
            upper=None if rule.max is None else rule.max.value,
            n_warmup_steps=after,
        )

    def _end(
        self, trial: Trial, record: Mapping[str, Any], state: str, values: Sequence[float] | None
    ) -> None:
        states, own = self._optuna.trial.TrialState, self._of(trial.number)
        own.set_user_attr(RECORD, json.dumps(record, allow_nan=False))
        if RECOVERY in own.user_attrs and self._recovery is not None:
            shadow = self._optuna.Trial(self._recovery, own.user_attrs[RECOVERY])
            last = list(self._storage.get_trial(own.user_attrs[RECOVERY]).intermediate_values.values())[-1:]
            kept = states.PRUNED if state == "PRUNED" else states.COMPLETE if last else states.FAIL
            self._recovery.tell(shadow, last[0] if kept == states.COMPLETE else None, state=kept)
        self._study.tell(own, values, state=states[state])

    def _of(self, number: int) -> Any:
        frozen = self._study.get_trials(deepcopy=False)[number]
        return self._optuna.Trial(self._study, frozen._trial_id)

    def _trial(self, trial: Any) -> Trial:
        return Trial(trial.number, self._values(trial.params))

    def _values(self, params: Mapping[str, Any]) -> Combination:
        """Texts behind --set, in the order of the file."""
        return {
            axis.path: params[axis.path] if isinstance(axis, Choice) else axis.text(params[axis.path])
            for axis in self.sweep.axes
        }

    def _distribution(self, axis: Axis) -> Any:
        of = self._optuna.distributions
        if isinstance(axis, Choice):
            return of.CategoricalDistribution(list(axis.values))
        if axis.whole:
            return of.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return of.FloatDistribution(axis.low, axis.high, log=axis.log)


def _key(values: Combination) -> str:
    return json.dumps(values, sort_keys=True)


def _params(varied: Sequence[Axis], values: Combination) -> dict[str, Any]:
    return {axis.path: values[axis.path] for axis in varied}
