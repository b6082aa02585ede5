"""The result of a run, and its comparison with the published figures of its config."""

from pathlib import PurePosixPath

from fcos_recipe.console import plural
from fcos_recipe.errors import UserError
from fcos_recipe.report.blocks import Items, Table, Text, Tiles
from fcos_recipe.runs.contents import Run, value
from fcos_recipe.runs.judgement import NOT_COMPARABLE, Verdict, found_in, judge

SHOWN = 6  #: how many reasons against a comparison are listed


def percent(ap: float | None) -> str:
    """AP in [0, 1] as text in percent: "39.7"; "-" if undefined."""
    return "-" if ap is None or ap < 0 else f"{100 * ap:.1f}"


def duration(hours: float) -> str:
    """Hours as text: "7.4 h", "12 min", "41 s"."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def headline(run: Run) -> str:
    """One sentence: the state of the run and its AP."""
    ap, best, epochs, epoch = run.ap, run.best, run.epochs, run.epoch
    of = f"{epoch or 0}" + (f" of {epochs}" if epochs else "")
    if run.state == "evaluation":
        e = run.evaluation
        source = (e.weights or e.predictions or "") if e else ""
        on = f" on {e.eval_set}" if e and e.eval_set else ""
        return f"Evaluation of {PurePosixPath(source).name}{on}: AP {percent(ap)}"
    if ap is None:
        result = "no AP yet" if run.state == "running" else "no AP, because it was never evaluated"
        if run.evaluation or run.evals:
            result = "AP undefined, because there were no objects"
    else:
        after = run.evaluation.epoch if run.evaluation else None
        result = f"AP {percent(ap)}" + (f" after epoch {after}" if after else "")
        if best and best[1] != after and best[0] > ap:
            result += f" (best {percent(best[0])} after epoch {best[1]})"
    return {
        "finished": f"Finished: {result}",
        "running": f"Running, in epoch {of}: {result}",
        "stopped": f"Stopped before the end, in epoch {of}: {result}",
        "empty": "Nothing was trained yet",
    }[run.state]


def tiles(run: Run) -> Tiles:
    """The key figures."""
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
        rows.append(("Evaluation, images/s", f"{e.images_per_second:.2f}", "all cards together"))
    return Tiles(rows)


def blocks(run: Run) -> list:
    """The first section."""
    found = [Text(headline(run), "verdict"), tiles(run)]
    if run.evaluation and run.evaluation.reason:
        found.append(Text(f"Why AP is 0 or undefined: {run.evaluation.reason}.", "bad"))
    if run.evaluation:
        found += [Text(note, "note") for note in run.evaluation.notes]
    if run.state == "running" and (left := _left(run)):
        found.append(Text(f"About {left} of training remain at the current speed."))
    if run.state == "stopped":
        found.append(Text("To continue from its newest checkpoint, run the same command with "
                          "--resume auto.", "note"))  # fmt: skip
    if run.bad_steps:
        found.append(Text(f"{plural(len(run.bad_steps), 'step')} had NaN or infinite values; "
                          "see the log and bad_steps/.", "bad"))  # fmt: skip
    found += against_published(run)
    found.append(Text(
        "AP is COCO's box AP at IoU 0.50:0.95, in percent. Images/s is the median over the logging "
        "intervals of training except the first; it includes data loading but not evaluation or "
        "saving. Time to train is the sum of these intervals.", "note",
    ))  # fmt: skip
    return found


def _left(run: Run) -> str:
    if not (run.facts and run.facts.steps and run.speed and run.train):
        return ""
    done = value(run.train[-1], "step") or 0
    images = max(run.facts.steps - done, 0) * run.facts.total_batch
    return duration(images / run.speed[1] / 3600) if run.speed[1] else ""


def against_published(run: Run) -> list:
    """Compare the run's AP and throughput with the published rows of its config."""
    name = run.config_name
    try:
        verdict = judge(found_in(run)) if name else None
    except UserError as error:
        return [Text(f"No comparison with the published figures: {error}", "note")]
    if verdict is None or not verdict.rows:
        what = f"of the config {name}" if name else "to compare with, because the config is unknown"
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
    unit = {"total": " in total", "card": " per card"}.get(
        row.throughput_of, " (per card or total?)"
    )
    return f"{row.images_per_second:.2f}{unit}"


def _sentence(verdict: Verdict) -> Text:
    nearest, ap = verdict.nearest, verdict.found.ap
    row, reasons = nearest.row, nearest.reasons
    on = f"{plural(row.cards, 'card')}, {row.device}" if row.device else plural(row.cards, "card")
    what = f"the published {row.ap:.1f} ({on})"
    if verdict.word == NOT_COMPARABLE or ap is None:
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        return Text(f"Not comparable with {what}: {'; '.join(reasons[:SHOWN])}{more}.")
    return Text(
        f"AP {ap:.1f} is {abs(ap - row.ap):.1f} {'above' if ap >= row.ap else 'below'} "
        f"{what}: {'within' if nearest.side == 'inside' else 'outside'} the tolerance of "
        f"{row.tolerance:g}.",
        {"inside": "good", "below": "bad", "above": ""}[nearest.side],
    )


def same_hardware(run: Run, row) -> bool:
    """Whether the run used the same cards, and as many, as a published row."""
    if row.device is None or run.cards != row.cards or run.environment is None:
        return False
    if row.device.lower() == "cpu":
        return False  # CPUs differ too much to compare
    return any(row.device.lower() in card.lower() for card in run.environment.cards)


def _speed_words(run: Run, row) -> str:
    if run.speed is None:
        return "this run has no throughput to compare"
    if not same_hardware(run, row):
        return "images/s measured on other hardware; not comparable with this run"
    one, total = run.speed
    this = {"total": [total], "card": [one]}.get(row.throughput_of, [one, total])
    shares = " or ".join(f"{100 * v / row.images_per_second:.0f} %" for v in this)
    doubt = "" if len(this) == 1 else " (per card or in total: the source does not state which)"
    return f"this run reaches {shares} of its images/s{doubt}"
