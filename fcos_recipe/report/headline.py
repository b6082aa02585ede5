"""What a run came to, and what may be said about it beside the published figure of its config."""

from pathlib import PurePosixPath

from fcos_recipe.errors import UserError
from fcos_recipe.report.blocks import Items, Table, Text, Tiles
from fcos_recipe.runs.contents import Run, value
from fcos_recipe.runs.judgement import NOT_COMPARABLE, Verdict, found_in, judge

SHOWN = 6  #: reasons why a run cannot be compared; a verdict is one sentence


def percent(ap: float | None) -> str:
    """AP in [0, 1] as COCO's tables have it: 39.7."""
    return "-" if ap is None or ap < 0 else f"{100 * ap:.1f}"


def duration(hours: float) -> str:
    """Hours in words: 7.4 h, 12 min, 41 s."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def headline(run: Run) -> str:
    """One sentence: the result, or how far it is."""
    ap, best, epochs, epoch = run.ap, run.best, run.epochs, run.epoch
    of = f"{epoch or 0}" + (f" of {epochs}" if epochs else "")
    if run.state == "evaluation":
        e = run.evaluation
        source = (e.weights or e.predictions or "") if e else ""
        return f"Evaluation of {PurePosixPath(source).name}: AP {percent(ap)}"
    if ap is None:
        result = "no AP yet" if run.state == "running" else "no AP: it was never evaluated"
        if run.evaluation or run.evals:
            result = "AP undefined: there was nothing to find"
    else:
        after = run.evaluation.epoch if run.evaluation else None
        result = f"AP {percent(ap)}" + (f" after epoch {after}" if after else "")
        if best and best[1] != after and best[0] > ap:
            result += f" (best {percent(best[0])} after epoch {best[1]})"
    return {
        "finished": f"Finished: {result}",
        "running": f"Still going on, in epoch {of}: {result}",
        "stopped": f"Stopped before its end, in epoch {of}: {result}",
        "empty": "Nothing was trained yet",
    }[run.state]


def tiles(run: Run) -> Tiles:
    """The figures of the first glance."""
    rows = []
    e = run.evaluation
    ap50 = e.figure("AP50") if e else None
    rows.append(("AP (COCO, box)", percent(run.ap), f"AP50 {percent(ap50)}" if ap50 else ""))
    if run.speed:
        one, total = run.speed
        rows.append(("Training, images/s per card", f"{one:.2f}", f"{total:.2f} in total"))
    if run.hours:
        train, judged = run.hours
        remark = f"and {duration(judged)} of evaluation" if judged else ""
        rows.append(("Time to train", duration(train), remark))
    if run.cards:
        on_cpu = run.device and run.device.startswith("CPU")
        rows.append(("Processes, on the CPU" if on_cpu else "Cards", str(run.cards), ""))
    if run.device:
        rows.append(("Device", run.device, ""))
    if run.facts:
        f = run.facts
        rows.append(("Images per step", str(f.total_batch), f"LR {f.lr:g}" if f.lr else ""))
    if e and e.images_per_second:
        rows.append(("Evaluation, images/s", f"{e.images_per_second:.2f}", "of all cards together"))
    return Tiles(rows)


def blocks(run: Run) -> list:
    """The first section."""
    found = [Text(headline(run), "verdict"), tiles(run)]
    if run.evaluation and run.evaluation.reason:
        found.append(Text(f"Why AP is 0 or undefined: {run.evaluation.reason}.", "bad"))
    if run.evaluation:
        found += [Text(note, "note") for note in run.evaluation.notes]
    if run.state == "running" and (left := _left(run)):
        found.append(Text(f"About {left} of training are left at the present speed."))
    if run.state == "stopped":
        found.append(Text("It can be continued from its newest checkpoint: the command that "
                          "started it, with --resume auto.", "note"))  # fmt: skip
    if run.bad_steps:
        found.append(Text(f"{plural(len(run.bad_steps), 'step')} had numbers that are not finite; "
                          "see the log and bad_steps/.", "bad"))  # fmt: skip
    found += against_published(run)
    found.append(Text(
        "AP is COCO's box AP at IoU 0.50:0.95, in percent. Images/s is the median over the logged "
        "stretches of training without the first, waiting for data included, evaluation and saves "
        "not; time to train is the sum of the same stretches.", "note",
    ))  # fmt: skip
    return found


def _left(run: Run) -> str:
    if not (run.facts and run.facts.steps and run.speed and run.train):
        return ""
    done = value(run.train[-1], "step") or 0
    images = max(run.facts.steps - done, 0) * run.facts.total_batch
    return duration(images / run.speed[1] / 3600) if run.speed[1] else ""


def against_published(run: Run) -> list:
    """The judgement on this run beside the published rows of its config, and their throughput."""
    name = run.config_name
    try:
        verdict = judge(found_in(run)) if name else None
    except UserError as error:
        return [Text(f"No comparison with the published figures: {error}", "note")]
    if verdict is None or not verdict.rows:
        what = f"of the config {name}" if name else "to compare with: the config is not known"
        return [Text(f"There is no published figure {what}.", "note")]
    rows = [compared.row for compared in verdict.rows]
    table = Table(
        f"Published figures of {name}",
        ["source", "device", "cards", "AP", "images/s", "reproduced here"],
        [
            [str(row.source), row.device or "not stated", str(row.cards), f"{row.ap:.1f}",
             _speed(row), "yes" if row.reproduced else "not reproduced here"]
            for row in rows
        ],
        {0, 1, 5},
    )  # fmt: skip
    return [_sentence(verdict), table, Items(
        [f"{row.source}: {_speed_words(run, row)}" for row in rows if row.images_per_second]
    )]  # fmt: skip


def _speed(row) -> str:
    if row.images_per_second is None:
        return "-"
    unit = {"total": " in total", "card": " per card"}.get(row.throughput_of, ", of what: unstated")
    return f"{row.images_per_second:.2f}{unit}"


def _sentence(verdict: Verdict) -> Text:
    nearest, ap = verdict.nearest, verdict.found.ap
    row, reasons = nearest.row, nearest.reasons
    on = f"{plural(row.cards, 'card')}, {row.device}" if row.device else plural(row.cards, "card")
    what = f"the published {row.ap:.1f} ({on})"
    if verdict.word == NOT_COMPARABLE or ap is None:
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        return Text(f"Not to be compared with {what}: {'; '.join(reasons[:SHOWN])}{more}.")
    return Text(
        f"AP {ap:.1f} is {abs(ap - row.ap):.1f} {'above' if ap >= row.ap else 'below'} "
        f"{what}: {'within' if nearest.side == 'inside' else 'outside'} the tolerance of "
        f"{row.tolerance:g}.",
        {"inside": "good", "below": "bad", "above": ""}[nearest.side],
    )


def same_hardware(run: Run, row) -> bool:
    """Whether the run's cards are those of a published row, and as many."""
    if row.device is None or run.cards != row.cards or run.environment is None:
        return False
    if row.device.lower() == "cpu":
        return False  # one CPU's figure says nothing about another's
    return any(row.device.lower() in card.lower() for card in run.environment.cards)


def _speed_words(run: Run, row) -> str:
    if run.speed is None:
        return "this run has no throughput to set beside it"
    if not same_hardware(run, row):
        return "images/s of other hardware, which this run's cannot be compared with"
    one, total = run.speed
    this = {"total": [total], "card": [one]}.get(row.throughput_of, [one, total])
    shares = " or ".join(f"{100 * v / row.images_per_second:.0f} %" for v in this)
    doubt = "" if len(this) == 1 else " (per card or in total: the source does not state which)"
    return f"this run is at {shares} of its images/s{doubt}"
