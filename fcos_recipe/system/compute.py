"""Choose the device for a command: cpu, gpu or iluvatar_gpu.

`decide` uses the requested device, the cards that the driver lists, and the cards that Paddle can
use. If the driver lists cards that Paddle cannot use, the command ends with an error, because a run
on the CPU would take days and nobody chose it. To use the CPU anyway, request it explicitly.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from fcos_recipe.config.load import COMMAND_LINE, Config
from fcos_recipe.errors import UserError
from fcos_recipe.system import cpu_math, device
from fcos_recipe.system.device import DEVICES, PLUGIN, Driver, PaddleFacts

AUTO, CARD = "auto", "card"  # CARD: any card but not the CPU, for `-o use_gpu=true`
# Set by the launcher for its ranks: the device that it chose and printed.
DECIDED = "FCOS_DEVICE"
CHOOSE_CPU = "choose the CPU explicitly: `-o device=cpu`, or DEVICE=cpu in the environment"


@dataclass(frozen=True)
class Compute:
    """The device of a run and the cards that were found.

    Args:
        device: cpu, gpu or iluvatar_gpu.
        requested: auto, card, or one of these three.
        driver: the cards that the driver lists; None: it lists none, or was not asked.
        facts: what Paddle reports; None: it was not asked.
        every: labels of all cards that Paddle counts, in the order of Paddle's card numbers.
        cards: labels of the cards that the run may use, a subset of `every`; empty on the CPU.
    """

    device: str
    requested: str = AUTO
    driver: Driver | None = None
    facts: PaddleFacts | None = None
    every: tuple[str, ...] = ()
    cards: tuple[str, ...] = ()

    def line(self) -> str:
        """Describe the choice in one line for the console."""
        listed = f"{self.driver.tool} lists {len(self.driver.cards)}" if self.driver else ""
        if self.device == "cpu" and self.requested == "cpu":
            idle = self.driver and self.driver.cards
            return "device: cpu, as requested" + (f"; {listed}, which are not used" if idle else "")
        counted = f"Paddle {self.facts.version} can use {self.facts.count}" if self.facts else ""
        found = ", ".join(filter(None, (listed, counted)))
        if self.device == "cpu":
            return f"device: cpu; no card on this machine ({found or 'no driver, no device node'})"
        return f"device: {self.device}; cards: {found}"


@dataclass(frozen=True)
class Found:
    """Devices of this machine: the driver's cards, why its tool failed, and Paddle's answer."""

    driver: Driver | None
    trouble: str
    facts: PaddleFacts | None


def requested(config: Config | None) -> str:
    """Return the requested device: auto, card, cpu, gpu or iluvatar_gpu.

    The launcher's choice has priority, then `-o device=`, the variable DEVICE, and the config
    files. `use_gpu: false`, a key of PaddleDetection, requests the CPU.

    Raises:
        UserError: settings contradict each other, or request unsupported hardware.
    """
    data = config.data if config else {}
    for name in ("use_npu", "use_xpu", "use_mlu"):
        if data.get(name):
            raise UserError(
                f"{name}: true: this project supports only {', '.join(DEVICES[1:])}; remove it"
            )
    if decided := os.environ.get(DECIDED):
        return decided
    asked = data.get("device", AUTO)
    if config is None or config.origin("device") != COMMAND_LINE:
        asked = os.environ.get("DEVICE") or asked
    use_gpu = data.get("use_gpu")
    explicit = config is not None and config.origin("use_gpu") == COMMAND_LINE
    if explicit and asked != AUTO and use_gpu is (asked == "cpu"):
        raise UserError(f"use_gpu: {str(use_gpu).lower()} and device: {asked} contradict each "
                        "other; remove one")  # fmt: skip
    if asked == AUTO and use_gpu is False:
        return "cpu"
    return CARD if asked == AUTO and explicit else asked


def look(ask: Callable[[], PaddleFacts]) -> Found:
    """Ask the driver and Paddle for devices.

    Args:
        ask: the function that asks Paddle.

    Raises:
        UserError: Paddle is missing or does not answer.
    """
    driver, trouble = device.find_driver()
    return Found(driver, trouble, ask())


def decide(requested: str, ask: Callable[[], PaddleFacts] | None = None) -> Compute:
    """Choose the device.

    Args:
        requested: from `requested`, or a value of the caller.
        ask: the function that asks Paddle. Default: for `auto` another process, unless Paddle is
            already imported here, because settings for the CPU must be made before its import.

    Raises:
        UserError: see `choose`; or Paddle is missing or does not answer.
    """
    if requested == "cpu":
        return Compute("cpu", "cpu")
    if requested == AUTO and "paddle" not in sys.modules and not device.may_have_cards():
        return Compute("cpu")
    if ask is None and requested == AUTO and "paddle" not in sys.modules:
        ask = device.ask_paddle_outside
    elif ask is None:
        device.select_card()
        ask = device.ask_paddle
    return choose(requested, look(ask))


def choose(requested: str, found: Found) -> Compute:
    """Choose the device from what `look` found.

    Raises:
        UserError: the device does not exist, Paddle cannot use it, or Paddle cannot use the
            machine's cards and the CPU was not requested explicitly.
    """
    if requested not in (*DEVICES, CARD):
        raise UserError(f"device: {requested!r} is unknown; choose from {', '.join(DEVICES)}")
    if requested == "cpu":
        return Compute("cpu", "cpu", found.driver, found.facts)
    facts = found.facts
    assert facts is not None
    kinds = ["gpu"] * facts.cuda + [PLUGIN] * (PLUGIN in facts.custom)
    if requested not in (AUTO, CARD, *kinds):
        offered = " and ".join([*kinds, "cpu"])
        raise UserError(
            f"device: {requested}: the installed Paddle {facts.version} supports {offered}; "
            "set `device: auto` or install the Paddle for your cards (README, Install)"
        )
    if kinds and facts.count:
        kind = requested if requested in kinds else kinds[0]
        every, cards = device.card_labels(kind, facts.count)
        if cards:
            return Compute(kind, requested, found.driver, facts, tuple(every), tuple(cards))
    listed = bool(found.driver and found.driver.cards)
    if requested == AUTO and not (listed or found.trouble or facts.count):
        return Compute("cpu", AUTO, found.driver, facts)
    asked = "use_gpu: true" if requested == CARD else f"device: {requested}"
    raise UserError(f"{asked}: {_why(found, facts, kinds)}, or {CHOOSE_CPU}")


def _why(found: Found, facts: PaddleFacts, kinds: list[str]) -> str:
    """Explain why Paddle can use no card and, after the last semicolon, what to do."""
    cards = found.driver.cards if found.driver else ()
    if found.trouble:
        reason = f"{found.trouble}, and Paddle {facts.version} can use no card"
    elif cards:
        names = ", ".join(sorted({card.name for card in cards}))
        assert found.driver is not None
        reason = f"{found.driver.tool} lists {len(cards)} card(s) ({names}), "
        reason += f"but Paddle {facts.version} can use none"
    else:
        reason = f"Paddle {facts.version} finds no card"
    if facts.custom and not kinds:
        reason += f", only devices of type {facts.custom[0]}, which this project does not support"
    elif not kinds:
        reason += ": it is a CPU build and no plugin is loaded"
    if not kinds:
        return f"{reason}; install the Paddle for your cards (README, Install)"
    hidden = [name for name in device.VISIBILITY if name in os.environ]
    if hidden:
        return f"{reason}: {hidden[0]}={os.environ[hidden[0]]!r} may hide them; unset it"
    return f"{reason}; run `python tools/doctor.py`"


def prepare(requested: str) -> Compute:
    """Choose the device and apply the settings that are needed before Paddle's import.

    Raises:
        UserError: see `decide`; or several ranks would share a card.
    """
    found = decide(requested)
    _refuse_shared_card(found)
    cpu_math.ensure(found.device)
    return found


def start(requested: str, show: bool = True) -> Compute:
    """`prepare`, then set the device of this process.

    Args:
        requested: see `decide`.
        show: print the choice if `is_shown`.

    Raises:
        UserError: see `prepare`.
    """
    found = prepare(requested)
    device.set_device(found.device)
    if show and is_shown():
        print(found.line(), flush=True)
    return found


def is_shown() -> bool:
    """Whether this process prints the choice: rank 0, unless the launcher has printed it."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0" and DECIDED not in os.environ


def _refuse_shared_card(found: Compute) -> None:
    """Raise UserError if several ranks would use card 0 because no launcher assigned cards.

    Paddle's own launcher before 3.1 assigns none with a plugin whose variable is not set.
    """
    ranks = int(os.environ.get("PADDLE_LOCAL_SIZE") or 1)
    if ranks == 1 or len(found.every) < 2 or f"FLAGS_selected_{found.device}s" in os.environ:
        return
    way = f"set PADDLE_XCCL_BACKEND={PLUGIN} for Paddle's launcher, or " * (found.device == PLUGIN)
    raise UserError(f"{ranks} processes would share card 0 of {len(found.every)}, because the "
                    f"launcher assigned no cards; {way}start with `bash scripts/train.sh`"
                    )  # fmt: skip
