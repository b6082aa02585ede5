"""Estimate the cost of gradient all-reduce for data-parallel training.

A ring all-reduce of B bytes on n ranks sends 2 (n - 1) / n x B bytes through each link, in
2 (n - 1) rounds (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", J. Parallel Distrib. Comput. 69, 2009); no all-reduce sends less. The slowest link
determines the time. Between hosts this is the network card, which a ring uses once in each
direction, regardless of the number of cards in the host.
"""

import math
from dataclasses import dataclass

BACKWARD = 2 / 3  # share of the backward pass in a step: twice the multiply-adds of the forward
MOST_CARDS = 4096


@dataclass(frozen=True)
class Load:
    """Computation and communication of one training step.

    Args:
        gradient_bytes: size of the gradients of all trained parameters.
        messages: number of messages that carry them (`comm_buffer_mb`).
        step: seconds of a step on one card without communication.
        latency: seconds per round of a message.
    """

    gradient_bytes: int
    messages: int
    step: float
    latency: float

    def exchange(self, cards: int, bandwidth: float) -> float:
        """Seconds of one step's all-reduce.

        Args:
            cards: world size.
            bandwidth: of the slowest link, bytes per second.
        """
        sent = 2 * (cards - 1) / cards * self.gradient_bytes
        return sent / bandwidth + 2 * (cards - 1) * self.messages * self.latency

    def efficiency(self, cards: int, bandwidth: float) -> tuple[float, float]:
        """Share of the time, 0-1, in which the cards compute: without overlap and with the best.

        Gradients can be sent while the backward pass computes others; at best, they are sent during
        the whole backward pass.
        """
        exchange = self.exchange(cards, bandwidth)
        hidden = max(0.0, exchange - BACKWARD * self.step)
        return self.step / (self.step + exchange), self.step / (self.step + hidden)

    def most_cards(self, bandwidth: float, least: float = 0.5) -> int:
        """The largest power of two, at most `MOST_CARDS`, with sufficient efficiency; else 1.

        Args:
            bandwidth: bytes per second.
            least: the sufficient efficiency, 0-1, without overlap.
        """
        cards = 1
        while cards < MOST_CARDS and self.efficiency(2 * cards, bandwidth)[0] >= least:
            cards *= 2
        return cards

    def bandwidth_for(self, efficiency: float) -> float:
        """Bytes per second with which any number of cards has this efficiency, without overlap."""
        return 2 * self.gradient_bytes / (self.step * (1 / efficiency - 1))


def table(load: Load, cards: list[int], networks: list[float]) -> str:
    """Table of efficiencies as text, a row per network.

    Args:
        cards: numbers of cards.
        networks: Gbit/s of the slowest link.
    """
    need = ", ".join(
        f"{load.bandwidth_for(share) * 8e-9:.1f} Gbit/s for {share:.0%}" for share in (0.5, 0.9)
    )
    rows = [
        f"{load.gradient_bytes / 1e6:.1f} MB of gradients per step, in {load.messages} messages; "
        f"{load.step * 1e3:.0f} ms per step on one card; {load.latency * 1e6:.0f} us per round",
        f"needed with any number of cards: {need} efficiency (no overlap, no latency)",
        f"{'Gbit/s':>8}" + "".join(f"{n:>6} cards" for n in cards) + "   at least 50 % up to",
    ]
    for network in networks:
        bandwidth = network * 1e9 / 8
        cells = []
        for n in cards:
            low, high = load.efficiency(n, bandwidth)
            cells.append(f"{math.floor(100 * low + 0.5)}-{math.floor(100 * high + 0.5)} %")
        most = load.most_cards(bandwidth)
        last = "one card" if most == 1 else f"{most}{' or more' * (most == MOST_CARDS)} cards"
        rows.append(f"{network:>8g}" + "".join(f"{cell:>12}" for cell in cells) + f"   {last}")
    return "\n".join(rows)
