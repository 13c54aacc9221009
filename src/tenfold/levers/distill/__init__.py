"""A smaller model that learns from the baseline, found by measured cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from tenfold import foresee
from tenfold.export import Served
from tenfold.lever import SIZING_SECONDS, SIZING_SHARE, Config, Refusal, Situation, Stage, Tried, dearest, spread
from tenfold.levers.distill import families, law
from tenfold.plan import Materials, ModelPass, Plan
from tenfold.recipe import canonical
from tenfold.train.config import TrainConfig
from tenfold.train.distill import is_mixable, learn_from_teacher
from tenfold.train.teacher import VIEWS, epochs_within

WANTED, LEAST = 2.0, 1.3
"""Times cheaper than the baseline that a structure has to be to be trained; and where none is that much, as of a small net whose calls cost more than what they compute."""
TIERS = ((LEAST, 4.0), (4.0, 8.0), (8.0, 12.0), (12.0, float("inf")))
"""Cost ratios against the baseline in which students are sought, each tier by itself: one that is too small to stand alone
may answer the easy inputs of a cascade."""
A_TIER = 1
"""Students of a tier that are tried in a short training of those that are expected to be worth most (`law`), and as many of those that are expected to be
best, whatever they cost."""
TIMED = 3
"""Of each kind, that are timed at learning."""
SCREEN_SHARE, ANSWER_SHARE = 0.15, 0.15
"""Of the budget, for short trainings, all of one time: those of the cheapest students come first; and for what their teacher answers beforehand."""
LEAST_EPOCHS, MOST_SHORT = 0.5, 8.0
"""Epochs of a short training, at the least, and at the most unless the baseline trains very long."""
WITHIN_REACH = 3.0
"""Margins by which a student may be worse after a short training, and yet be trained in full to stand alone."""
TRAIN_SHARE = 0.5
"""Of the budget that is left after the short trainings: for those in full."""
SHORT_SHARE = 1 / 15
"""Of the whole budget, for one training of the baseline as short as those of the joint search are."""
LEAST_LENGTH, SHORT_LENGTH, MOST_LENGTH = 1 / 8, 1 / 3, 10.0
"""Of the shortest and the longest short training of the joint search, and of the longest of all, in trainings of the baseline."""
FORMS = 2
"""In which a structure is sized: as it is, and compressed."""
LEAST_STRUCTURES, SKELETON_SHARE = 3, 0.05
"""That are sized, however small the budget is; and the share of it for more of them."""
WORTH_OF_HALF_THE_COST, WORTH_OF_HALF_THE_TRAINING = 2.0, 0.5
"""In margins of quality after a short training, of which a longer one makes up for a part."""
RATES = (0.5, 1.0, 2.0)
"""Factors on the usual learning rate that the joint search may choose."""
MIXUP_SHARE = 0.01
"""Of the budget, at which the joint search may choose mixup: the teacher has to answer on the mixed images too."""
ANSWERING = 1 / 3
"""Arithmetic of a prediction over that of a training step."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A student and how it is taught."""

    student: dict[str, Any]
    """Its family and size: see `families`."""
    epochs: float
    learning_rate: float
    dtype: Literal["float32", "bfloat16"]
    teachers: int = 1
    """Trainings of the baseline whose mean answer is learned; 0: the workload's own teacher."""
    mixup: bool = False
    """Of use where a student would learn the training examples by heart; a small one in a short training does not."""


class Distill:
    name = "distill"
    stages: tuple[Stage, ...] = (Stage.MODEL,)
    rank = 1
    touches = frozenset({"model_passes"})
    summary = "a smaller model that learns what the baseline answers"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective == "train":
            return Refusal("a student is trained after its teacher: it makes serving cheaper, not training")
        if not situation.examples.can_teach:
            return Refusal("there is nothing that a student could learn from: give train= or unlabelled=")
        if situation.tried:
            return _in_full(situation)
        return _short(situation)

    def space(self, situation: Situation) -> Mapping[str, Sequence[Any]]:
        dimensions = families.dimensions(situation) if situation.examples.can_teach else {}
        answering = ANSWERING * _short_length(situation) * situation.learning_seconds
        mixup = is_mixable(situation.examples.valid.inputs) and answering <= MIXUP_SHARE * situation.whole_budget
        return dimensions and {**dimensions, "rate": RATES, "mixup": [False, True] if mixup else [False]}

    def at(self, situation: Situation, point: Mapping[str, Any]) -> Config:
        spec = families.at(point)
        config = _json(situation, spec, _short_epochs(situation))
        return config | {"learning_rate": config["learning_rate"] * point["rate"], "mixup": point["mixup"]}

    def longer(self, config: Config, times: float) -> Config:
        return config | {"epochs": max(min(1.0, config["epochs"]), float(round(config["epochs"] * times)))}

    def training(self, config: Config, training: TrainConfig) -> TrainConfig:
        how = families.training_of(config["student"], training)
        return dataclasses.replace(how, epochs=config["epochs"], learning_rate=config["learning_rate"], dtype=config["dtype"], max_seconds=None)

    def apply(self, plan: Plan, config: Config) -> Plan:
        chosen = DistillConfig(**config)
        done = ModelPass(
            key={"pass": "distill", **config}, shape=partial(_student, spec=chosen.student), teach=partial(_teach, config=chosen)
        )
        return dataclasses.replace(plan, model_passes=(*plan.model_passes, done))


def _student(model: nn.Module, materials: Materials, spec: dict[str, Any]) -> nn.Module:
    assert isinstance(model, Served)
    return Served(families.build(spec, model, materials), model.preprocess)


def _teach(model: nn.Module, training: TrainConfig, materials: Materials, config: DistillConfig) -> dict[str, Any]:
    how = lever.training(dataclasses.asdict(config), training)
    how = dataclasses.replace(how, learning_rate=how.learning_rate * materials.rate)
    return learn_from_teacher(model, how, materials, teachers=config.teachers, mixup=config.mixup)


def _short(situation: Situation) -> Sequence[Config] | Refusal:
    """Students of each tier of cost, for a short training."""
    specs = families.space(situation)
    if not specs:
        return Refusal("no family of smaller models fits these inputs: give student=, which builds the model at a share of its width")
    if situation.sizable() < LEAST_STRUCTURES * FORMS:
        return situation.too_short("looking for a student", LEAST_STRUCTURES * FORMS * SIZING_SECONDS / SIZING_SHARE)
    a_view = _answering(situation)
    if a_view > ANSWER_SHARE * situation.budget:
        return Refusal(f"the teacher would take {a_view:,.0f} s to answer on what is learned from, too long for this budget: give a faster one, or a larger --budget")
    specs = families.lighter(specs, situation)
    if not specs:
        return Refusal("every student of the families for these inputs would have very many more weights than the model: give student=, which builds the model at a share of its width")
    specs = spread(specs, max(LEAST_STRUCTURES, situation.sizable(SKELETON_SHARE) // FORMS))
    configs = [_json(situation, spec, _short_epochs(situation)) for spec in specs]
    ratios = situation.skeleton_ratios(configs, compressed=True)
    measured = [(c, r) for c, r in zip(configs, ratios, strict=True) if isinstance(r, float)]
    cheaper = [(c, r) for c, r in measured if r >= WANTED] or [(c, r) for c, r in measured if r >= LEAST]
    if not cheaper:
        return dearest(ratios, LEAST)
    chosen = _worth_trying(cheaper, situation)
    if isinstance(chosen, Refusal):
        return chosen
    share, most = SCREEN_SHARE * situation.budget, _most_short(situation, a_view)
    out: list[Config] = []
    expected = 0.0
    for config, an_epoch in chosen:
        epochs = min(max(share / len(chosen) / an_epoch, LEAST_EPOCHS), most)
        if expected + epochs * an_epoch <= (1 + 1e-9) * share:
            expected += epochs * an_epoch
            out.append(config | {"epochs": _rounded(epochs)})
    if out:
        return out
    config, an_epoch = min(chosen, key=lambda c: c[1])
    epochs = min(LEAST_EPOCHS, most)
    if epochs * an_epoch > (SCREEN_SHARE + TRAIN_SHARE) * situation.budget:
        return situation.too_short("the training of a student")
    return [config | {"epochs": _rounded(epochs)}]


def _answering(situation: Situation) -> float:
    """Seconds that the teacher takes to answer on an epoch, beforehand or while it is learned from."""
    own = ANSWERING * max(situation.teachers, 1) * situation.learning_seconds / situation.plan.training.epochs
    return situation.epoch_answered or own


def _most_short(situation: Situation, a_view: float) -> float:
    """Epochs of a short training at the most: of a long one for the baseline it may be longer, of a short one shorter; and what it sees has to be answered."""
    most = min(max(MOST_SHORT, _short_epochs(situation)), MOST_LENGTH / 2 * situation.plan.training.epochs)
    views = ANSWER_SHARE * situation.budget / a_view if a_view and situation.answers_kept else VIEWS
    return most if views >= VIEWS else min(most, float(int(views)))


def _worth_trying(cheaper: Sequence[tuple[Config, float]], situation: Situation) -> list[tuple[Config, float]] | Refusal:
    """Of each tier, from the cheapest on, the student that is expected to be worth most and the one that is expected to be best, with the seconds of an epoch."""
    sizes = families.sizes([c["student"] for c, _ in cheaper], situation)

    def first(places: Sequence[int], count: int, seconds: Mapping[int, float]) -> list[int]:
        worth, best = (sorted(places, key=lambda i: law.rank(*sizes[i], cheaper[i][1] if weighed else 1.0, seconds[i])) for weighed in (True, False))
        return list(dict.fromkeys([*worth[:count], *[i for i in best if i not in worth[:count]][:count]]))

    tiers = [[i for i, (_, ratio) in enumerate(cheaper) if low <= ratio < high] for low, high in reversed(TIERS)]
    tiers = [first(tier, TIMED, dict.fromkeys(tier, 1.0)) for tier in tiers]
    timed = [i for tier in tiers for i in tier]
    trainings = [lever.training(cheaper[i][0], situation.plan.training) for i in timed]
    found = situation.epoch_seconds([cheaper[i][0] for i in timed], trainings)
    more = 0.0 if situation.answers_kept else _answering(situation)
    seconds = {i: each + more for i, each in zip(timed, found, strict=True) if isinstance(each, float)}
    if not seconds:
        return Refusal(f"no smaller structure can be trained: {next(str(f) for f in found)}")
    return [(cheaper[i][0], seconds[i]) for tier in tiers for i in first([i for i in tier if i in seconds], A_TIER, seconds)]


def _in_full(situation: Situation) -> Sequence[Config]:
    """The most promising, for as long as the budget allows."""
    if len({canonical(t.config["student"]) for t in situation.tried}) < len(situation.tried):  # those were trained in full
        return []
    able = [t for t in situation.tried if t.gain is not None and t.verdict.quality is not None]
    best = _best_before_others(able, situation)
    alone = [t for t in able if not best or _may_come_to_stand_alone(t, situation.margin)]
    best += [t for t in _best_of_tiers(alone, situation.margin) if t not in best]
    if not best:
        return []
    budget = situation.budget * TRAIN_SHARE
    answering = max(t.answering_seconds for t in best) / len(best)  # those who are trained share the answers
    answered = math.ceil(max((t.config["epochs"] for t in situation.tried if t.training_seconds), default=0.0))
    weights = [max(t.training_seconds / t.config["epochs"], 1e-6) ** 0.5 for t in best]
    out = []
    for tried, weight in zip(best, weights, strict=True):
        an_epoch, seconds = max(tried.training_seconds / tried.config["epochs"], 1e-6), budget * weight / sum(weights)
        epochs = min(MOST_LENGTH * situation.plan.training.epochs, epochs_within(seconds, an_epoch, answering, answered=answered))
        if epochs >= 2 * tried.config["epochs"]:
            out.append(tried.config | {"epochs": float(round(epochs))})
    return out


def _best_before_others(tried: Sequence[Tried], situation: Situation) -> list[Tried]:
    """Those that would make most of a cascade with the baseline behind them, by what they answer after a short training."""
    parts = situation.parts()
    if not parts or not foresee.may_compose(situation, parts[0]):
        return []
    ratios = situation.skeleton_ratios([t.config | {"epochs": _short_epochs(situation)} for t in tried], compressed=True)  # as they were sized
    by_config = {canonical(p.recipe.pulls[-1].config): p for p in parts if p.recipe.pulls}
    measured = [(t, by_config[key], r) for t, r in zip(tried, ratios, strict=True) if (key := canonical(t.config)) in by_config]
    students = [replace(part, cost=min(part.cost, parts[0].cost / ratio)) if isinstance(ratio, float) else part for _, part, ratio in measured]
    keeps = law.keeps([weights for weights, _ in families.sizes([t.config["student"] for t, _, _ in measured], situation)])
    return [measured[i][0] for i in foresee.promising(students, parts[0], situation.margin, keeps=keeps)]


def _may_come_to_stand_alone(tried: Tried, margin: float) -> bool:
    assert tried.verdict.quality is not None
    return tried.verdict.quality.value >= -WITHIN_REACH * margin


def _best_of_tiers(tried: Sequence[Tried], margin: float) -> list[Tried]:
    best: list[Tried] = []
    for i, (low, high) in enumerate(TIERS):  # what measured at a tier's lower end may come out below it once it is trained
        tier = [t for t in tried if t.gain is not None and (low if i else 0.0) <= t.gain.value < high]
        if tier:
            best.append(max(tier, key=partial(_promise, margin=margin)))
    return best


def _short_epochs(situation: Situation) -> float:
    return max(1.0, float(round(situation.plan.training.epochs * _short_length(situation))))


def _short_length(situation: Situation) -> float:
    """In trainings of the baseline: the more a short training sees, the better it tells which student will be good after a long one."""
    if not situation.learning_seconds:
        return LEAST_LENGTH
    return min(max(SHORT_SHARE * situation.whole_budget / situation.learning_seconds, LEAST_LENGTH), SHORT_LENGTH)


def _promise(tried: Tried, margin: float) -> float:
    """Quality after a short training, and what it is worth that a student is cheaper to serve, and that a longer training buys more epochs."""
    assert tried.verdict.quality is not None
    assert tried.gain is not None
    cheaper = WORTH_OF_HALF_THE_COST * math.log2(max(tried.gain.value, 1e-6))
    slower = WORTH_OF_HALF_THE_TRAINING * math.log2(max(tried.training_seconds, 1e-6))
    return tried.verdict.quality.value + margin * (cheaper - slower)


def _rounded(epochs: float) -> float:
    return float(f"{epochs:.2g}")


def _json(situation: Situation, spec: dict[str, Any], epochs: float) -> Config:
    return dataclasses.asdict(
        DistillConfig(
            student=spec, epochs=epochs, learning_rate=families.learning_rate(spec, situation.plan.training),
            dtype=families.dtype(spec, situation), teachers=situation.teachers,
        )
    )  # fmt: skip


lever = Distill()
